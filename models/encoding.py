"""From a trajectory or a rationale record to token ids, the sampled mask, pictures and mRoPE positions.

Two streams of ids describe the same sequence. *Collapsed* has ONE ``<|image_pad|>`` per picture; it is what
a processor would be given, and grows by parts. *Encoded* has one pad per visual token; the trainer takes it,
and engines in this process take its ids.

Ids that the engine sampled are used as they are, never decoded and tokenised again. Only what we put into the
assistant's turn (a message, the vision markers around a crop) is tokenised here, once, and is not *sampled*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models._compat import declare_torchvision_operators
from models.config import Look
from models.crops import crop_from_original
from models.errors import EncodingError
from models.records import VLIRRecord
from models.region import Box, Picture, Size, View, find_fault, see
from models.trajectory import CropSpan, Exchange, Prompt, SampledSpan, Span, TextSpan, Trajectory

declare_torchvision_operators()

from transformers import AutoConfig, AutoProcessor  # noqa: E402

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
_INCOMPLETE = "\ufffd"  # what bytes decode to that make no whole character
NOT_SAMPLED = -1  # policy version of a token that no policy sampled


@dataclass(frozen=True, slots=True)
class Collapsed:
    """A sequence with one image pad per picture; four tuples of one length, and the pictures in order."""

    ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A sequence of T tokens as the trainer takes it, one image pad per visual token.

    ``engine_logprobs`` (nats, at the sampling temperature) is 0 and ``versions`` is -1 where a token was not
    sampled. A record's tokens count as sampled with log-prob 0: there was no engine.
    """

    ids: NDArray[np.int64]  # (T,)
    sampled: NDArray[np.bool_]  # (T,)
    engine_logprobs: NDArray[np.float32]  # (T,)
    versions: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int64]  # (3, T): time, height, width
    pictures: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_sampled(self) -> int:
        """Tokens that carry loss."""
        return int(self.sampled.sum())


class Encoder:
    """Everything that knows token ids: tokenizer, chat template, vision markers, picture grids."""

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        vision = config.vision_config
        self.patch_size: int = vision.patch_size
        self.merge_size: int = vision.spatial_merge_size
        self.vocab_size: int = config.get_text_config().vocab_size
        self.vision_start_id, self.vision_end_id, _, self.image_token_id, _ = map(self._id, VISION_TOKENS)
        if self.image_token_id != config.image_token_id:
            raise EncodingError(
                f"The tokenizer's <|image_pad|> is {self.image_token_id}, the model's is "
                f"{config.image_token_id}: tokenizer and weights do not belong together."
            )
        self.eos_id = self._id(END_TOKENS[0])
        self.end_ids = tuple(map(self._id, END_TOKENS))
        self.pad_id = self.end_ids[-1]
        # A sampled vision token would bind the next picture to the wrong pad; an id beyond the tokenizer has
        # no text at all.
        self.banned_ids = tuple(
            sorted({*map(self._id, VISION_TOKENS), *range(len(self.tokenizer), self.vocab_size)})
        )
        self._banned = frozenset(self.banned_ids)
        self._prompt_ids = lru_cache(maxsize=4096)(self._tokenize_prompt)

    @classmethod
    def load(cls, model_path: Path) -> "Encoder":
        """The encoder of a model folder in Hugging Face layout; nothing is downloaded."""
        return cls(
            AutoProcessor.from_pretrained(model_path, local_files_only=True, trust_remote_code=False),
            AutoConfig.from_pretrained(model_path, local_files_only=True, trust_remote_code=False),
        )

    def collapse(self, prompt: Prompt, spans: Sequence[Span]) -> Collapsed:
        """The prompt and the assistant's turn so far. Raises EncodingError for a sampled span without ids."""
        turns = [
            turn for exchange in prompt.earlier for turn in (_question(exchange.question), _reply(exchange))
        ]
        prompt_ids = self._prompt_ids(prompt.system, (*turns, _question(prompt)))
        parts = [_given(prompt_ids), *(self._span(span) for span in spans)]
        pictures = (*prompt.shown(), *(span.picture for span in spans if isinstance(span, CropSpan)))
        return self._joined(parts, pictures)

    def expand(self, collapsed: Collapsed) -> Encoded:
        """The same sequence with one pad per visual token, and its positions."""
        grids = [self.grid(picture) for picture in collapsed.pictures]
        repeats = self._repeats(collapsed)
        expanded = np.repeat(np.asarray(collapsed.ids), repeats)
        return Encoded(
            ids=expanded,
            sampled=np.repeat(np.asarray(collapsed.sampled, dtype=np.bool_), repeats),
            engine_logprobs=np.repeat(np.asarray(collapsed.logprobs, dtype=np.float32), repeats),
            versions=np.repeat(np.asarray(collapsed.versions, dtype=np.int32), repeats),
            positions=mrope_positions(expanded == self.image_token_id, grids),
            pictures=collapsed.pictures,
        )

    def expand_ids(self, collapsed: Collapsed) -> NDArray[np.int64]:
        """Only the ids of :meth:`expand`."""
        return np.repeat(np.asarray(collapsed.ids), self._repeats(collapsed))

    def encode(self, trajectory: Trajectory) -> Encoded:
        """A finished trajectory, ready to train on, up to the last token that was sampled.

        A crop that nothing follows is left out: it was context to nobody, and may be what no longer fitted
        into the engine. Raises EncodingError when the engine reported no ids or log-probs, or sampled a
        banned token.
        """
        for span in trajectory.spans:
            if isinstance(span, SampledSpan) and span.logprobs is None:
                raise EncodingError(
                    f"Trajectory {trajectory.question_id}#{trajectory.sample_index} has no log-probs. "
                    "It can be scored, not trained on: sample with vLLM or transformers."
                )
        return self.expand(self.collapse(trajectory.prompt, _to_the_last_sampled(trajectory.spans)))

    def encode_record(self, record: VLIRRecord, look: Look) -> Encoded:
        """A rationale record for SFT: its text counts as sampled, closed by ``<|im_end|>``; crops are given.

        Raises EncodingError when the record's boxes refer to another seen size than ``look`` gives, or to
        what is not in the picture.
        """
        image = record.question.image()
        view = View.of(Size(image.width, image.height), look.budget)
        if (view.seen.width, view.seen.height) != record.seen_size:
            raise EncodingError(
                f"Record {record.question.id!r}: its boxes refer to a picture seen at {record.seen_size}, "
                f"this pixel budget shows it at {(view.seen.width, view.seen.height)}. Rebuild the records."
            )
        prompt = Prompt(record.question.text, (see(image, look.budget),), look.system)
        unused = np.random.default_rng(0)
        spans: list[Span] = []
        for step in record.steps:
            spans.append(self._written(step.text))
            if step.box is not None:
                _require_inside(step.box, view, record.question.id)
                spans.append(CropSpan(*crop_from_original(image, step.box, look.budget, unused)))
        end = SampledSpan(text="", token_ids=(self.eos_id,), logprobs=(0.0,))
        return self.expand(self.collapse(prompt, [*spans, end]))

    def grid(self, picture: Picture) -> tuple[int, int]:
        """Rows and columns of visual tokens. Raises EncodingError for a picture that is not smart-resized."""
        unit = self.patch_size * self.merge_size
        size = picture.size
        if size.width % unit or size.height % unit:
            raise EncodingError(
                f"A picture of {size.width}x{size.height} pixels reached the encoder; both sides must be "
                f"multiples of {unit}. Resize it with models.region.see or look first."
            )
        return size.height // unit, size.width // unit

    def patch_grids(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Time, rows and columns of patches of each picture (pictures, 3). Raises what :meth:`grid` does."""
        grids = [(1, *(side * self.merge_size for side in self.grid(picture))) for picture in pictures]
        return torch.tensor(grids)

    def patches(
        self, pictures: Sequence[Picture], *, normalise: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (N, patch values) of all pictures, and their grids (pictures, 3) in patches.

        Values are float32, or, where not to be normalised, the pixels' own uint8.
        """
        values = self.processor.image_processor(
            [picture.image for picture in pictures],
            do_resize=False,
            do_rescale=normalise,
            do_normalize=normalise,
            return_tensors="pt",
        )
        return values["pixel_values"], values["image_grid_thw"]

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Ids of plain text. Raises EncodingError when the text smuggles in a special token."""
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        special = self._banned.union(self.end_ids).intersection(ids)
        if special:
            raise EncodingError(
                f"Text contains the special token {self.tokenizer.decode(min(special))!r}: {text!r}"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def drifts(self, spans: Sequence[Sequence[int]]) -> list[bool]:
        """Of each span of sampled ids: would its text, special tokens included, be tokenised otherwise?

        To train on such a text would be to train on ids that nobody sampled. Nothing here does; see
        ``rgrpo/retokenisation_drift``.
        """
        if not spans:
            return []
        texts = [
            self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for ids in spans
        ]
        again = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [other != list(ids) for other, ids in zip(again, spans, strict=True)]

    def _repeats(self, collapsed: Collapsed) -> NDArray[np.int64]:
        """How often each collapsed id stands in the expanded sequence."""
        repeats = np.ones(len(collapsed.ids), dtype=np.int64)
        grids = [self.grid(picture) for picture in collapsed.pictures]
        repeats[np.asarray(collapsed.ids) == self.image_token_id] = [
            rows * columns for rows, columns in grids
        ]
        return repeats

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise EncodingError(f"The tokenizer has no {token}. A Qwen2.5-VL tokenizer is needed.")
        return found

    def _tokenize_prompt(self, system: str | None, turns: tuple["_Turn", ...]) -> tuple[int, ...]:
        """Ids of a prompt: questions and replies in turn, the last a question."""
        messages = [
            {"role": "assistant" if index % 2 else "user", "content": [_content(text) for text in turn]}
            for index, turn in enumerate(turns)
        ]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [_content(system)]})
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer.encode(rendered, add_special_tokens=False))

    def _written(self, text: str) -> SampledSpan:
        """A record's text as if a policy had sampled it."""
        ids = self.tokenize(text)
        return SampledSpan(text=text, token_ids=ids, logprobs=(0.0,) * len(ids))

    def _span(self, span: Span) -> "_Part":
        if isinstance(span, CropSpan):
            return _given((self.vision_start_id, self.image_token_id, self.vision_end_id))
        if isinstance(span, TextSpan):
            return _given(self.tokenize(span.text))
        if span.token_ids is None:
            raise EncodingError(
                "A sampled span has no token ids; text is never tokenised again. Use another engine."
            )
        unknown = [token for token in span.token_ids if not 0 <= token < self.vocab_size]
        if unknown:
            raise EncodingError(f"Sampled ids {unknown} are none of the model's {self.vocab_size} tokens.")
        banned = self._banned.intersection(span.token_ids)
        if banned:
            raise EncodingError(
                f"The engine sampled the banned tokens {sorted(banned)}; its mask is not in place."
            )
        length = len(span.token_ids)
        logprobs = span.logprobs if span.logprobs is not None else (0.0,) * length
        if len(logprobs) != length:
            raise EncodingError(f"A sampled span has {length} ids and {len(logprobs)} log-probs.")
        return _Part(span.token_ids, (True,) * length, logprobs, (span.policy_version,) * length)

    def _joined(self, parts: Sequence["_Part"], pictures: tuple[Picture, ...]) -> Collapsed:
        ids = tuple(value for part in parts for value in part.ids)
        pads = ids.count(self.image_token_id)
        if pads != len(pictures):
            raise EncodingError(
                f"The sequence has {pads} image pads for {len(pictures)} pictures. "
                "A question's text must not contain <|image_pad|>."
            )
        return Collapsed(
            ids=ids,
            sampled=tuple(value for part in parts for value in part.sampled),
            logprobs=tuple(value for part in parts for value in part.logprobs),
            versions=tuple(value for part in parts for value in part.versions),
            pictures=pictures,
        )


class TextSoFar:
    """The text of ids that keep coming, up to the last whole character.

    Right for byte-level tokenizers such as Qwen2.5-VL's, whose text is the bytes of its tokens in a row.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._num_read = 0

    def grow(self, ids: Sequence[int]) -> str:
        """What the text gains, given all ids sampled so far; empty while a character is incomplete."""
        added = self._encoder.decode(ids[self._num_read :])
        if added.endswith(_INCOMPLETE):
            return ""
        self._num_read = len(ids)
        return added


# Text, and None for every picture in it.
_Turn = tuple[str | None, ...]


def _question(prompt: Prompt) -> _Turn:
    return tuple(part if isinstance(part, str) else None for part in prompt.parts())


def _reply(exchange: Exchange) -> _Turn:
    return tuple(None if isinstance(span, CropSpan) else span.text for span in exchange.reply)


def _content(text: str | None) -> dict[str, str]:
    return {"type": "image"} if text is None else {"type": "text", "text": text}


@dataclass(frozen=True, slots=True)
class _Part:
    ids: tuple[int, ...]
    sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]


def _require_inside(box: Box, view: View, id: str) -> None:
    """Raise EncodingError for a box that the loop would refuse wherever it was written: a crop of it would be
    of something else."""
    corners = list(box.corners())
    fault = find_fault(box, view, min_side=0, max_aspect_ratio=np.inf, repeated_iou=np.inf)
    if fault is not None or not np.isfinite(corners).all():
        raise EncodingError(
            f"Record {id!r}: the box {corners} is {fault.value if fault else 'not of numbers'} in a picture "
            f"seen at {view.seen.width}x{view.seen.height}. Boxes are [x1, y1, x2, y2] within it."
        )


def _to_the_last_sampled(spans: Sequence[Span]) -> Sequence[Span]:
    ends = [
        end for end, span in enumerate(spans, start=1) if isinstance(span, SampledSpan) and span.token_ids
    ]
    return spans[: max(ends, default=0)]


def _given(ids: tuple[int, ...]) -> _Part:
    length = len(ids)
    return _Part(ids, (False,) * length, (0.0,) * length, (NOT_SAMPLED,) * length)


def mrope_positions(is_pad: NDArray[np.bool_], grids: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Rotary positions (3, T) as in Qwen2.5-VL: text counts on; a picture is a plane of rows and columns.

    ``is_pad`` (T,) marks visual tokens, ``grids`` holds (rows, columns) of visual tokens per picture.
    A picture starts at the next position p, its token (row, column) is at (p, p + row, p + column), and text
    goes on at p + max(rows, columns). Pictures are told apart by the vision markers between them.
    """
    positions = np.empty((3, len(is_pad)), dtype=np.int64)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_pad, [False]))))
    starts, ends = edges[0::2], edges[1::2]
    if [rows * columns for rows, columns in grids] != (ends - starts).tolist():
        raise EncodingError(
            f"Runs of image pads have lengths {(ends - starts).tolist()}, the pictures need "
            f"{[rows * columns for rows, columns in grids]}."
        )
    done, following = 0, 0
    for (rows, columns), start, end in zip(grids, starts, ends, strict=True):
        positions[:, done:start] = np.arange(following, following + start - done)
        following += start - done
        plane = np.indices((rows, columns)).reshape(2, -1)
        positions[0, start:end] = following
        positions[1:, start:end] = plane + following
        following += max(rows, columns)
        done = end
    positions[:, done:] = np.arange(following, following + len(is_pad) - done)
    return positions
