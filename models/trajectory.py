"""What happened in one attempt at one question: spans in order, each sampled by the model or given to it.

A token is marked *sampled* here, where it is born, and the mark is only read afterwards. Sampled ids are kept
as the engine returned them and are never re-tokenised.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from models.region import Box, Picture


class StopReason(StrEnum):
    """Every way a trajectory can end."""

    ANSWERED = "answered"
    END_WITHOUT_ANSWER = "end_without_answer"
    TOKEN_LIMIT = "token_limit"
    TURN_LIMIT = "turn_limit"
    CROP_LIMIT = "crop_limit"
    CONTEXT_LIMIT = "context_limit"
    PROTOCOL_ERROR = "protocol_error"
    ENGINE_ERROR = "engine_error"
    ABORTED = "aborted"

    @property
    def is_truncated(self) -> bool:
        """The model was cut off by a limit before it ended by itself."""
        return self in _TRUNCATED

    @property
    def is_our_failure(self) -> bool:
        """We broke, not the model: no reward and no score may be drawn from it."""
        return self in (StopReason.ENGINE_ERROR, StopReason.ABORTED)


_TRUNCATED = (
    StopReason.TOKEN_LIMIT,
    StopReason.TURN_LIMIT,
    StopReason.CROP_LIMIT,
    StopReason.CONTEXT_LIMIT,
)


class TurnError(StrEnum):
    """Every way a crop command can break the protocol."""

    BAD_JSON = "bad_json"
    NO_SUCH_IMAGE = "no_such_image"
    INVERTED_BOX = "inverted_box"
    OUTSIDE_IMAGE = "outside_image"
    TOO_SMALL = "too_small"
    ASPECT_RATIO = "aspect_ratio"
    REPEATED_BOX = "repeated_box"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: an optional system text, then text and pictures.

    ``places`` says before which character of the text each picture stands, in ascending order; without them
    all pictures stand before the text. ``earlier`` is what was asked and answered before, which stands
    between the system text and this question.
    """

    text: str
    pictures: tuple[Picture, ...] = ()
    system: str | None = None
    places: tuple[int, ...] = ()
    earlier: tuple["Exchange", ...] = ()

    def __post_init__(self) -> None:
        if self.places:
            assert len(self.places) == len(self.pictures), "one place per picture"
            assert list(self.places) == sorted(self.places), "places ascend"

    def parts(self) -> Iterator[str | Picture]:
        """Text and pictures in order, no empty text; adjacent texts are joined."""
        start = 0
        for picture, place in zip(self.pictures, self.places or (0,) * len(self.pictures), strict=True):
            if place > start:
                yield self.text[start:place]
                start = place
            yield picture
        if start < len(self.text) or not self.pictures:
            yield self.text[start:]

    def shown(self) -> tuple[Picture, ...]:
        """Every picture that the model sees before it writes, in order: those of earlier questions with the
        crops that were given then, and those of this one.
        """
        before = [(*exchange.question.pictures, *exchange.crops) for exchange in self.earlier]
        return (*(picture for pictures in before for picture in pictures), *self.pictures)


@dataclass(frozen=True, slots=True)
class SampledSpan:
    """Tokens that the model sampled in one turn, special tokens such as ``<|im_end|>`` included.

    ``text`` leaves special tokens out. ``token_ids`` and ``logprobs`` (nats, at the sampling temperature) are
    None for an engine that does not report them; such a trajectory can be scored but not trained on. An
    endpoint may still say how many tokens it sampled (``reported_tokens``).
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    policy_version: int = 0
    reported_tokens: int | None = None

    @property
    def num_tokens(self) -> int | None:
        """Tokens in the span; None for an engine that reports neither ids nor their number."""
        return self.reported_tokens if self.token_ids is None else len(self.token_ids)


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text that we put into the assistant's turn (a message about a refused box)."""

    text: str


@dataclass(frozen=True, slots=True)
class CropSpan:
    """A crop of picture number ``image`` that we put into the assistant's turn, between vision markers."""

    picture: Picture
    box: Box
    image: int = 1


Span = SampledSpan | TextSpan | CropSpan


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question of a conversation and the reply to it: text without ids, what we told, crops."""

    question: Prompt
    reply: tuple[Span, ...]

    @property
    def crops(self) -> tuple[Picture, ...]:
        """The crops in the reply."""
        return tuple(span.picture for span in self.reply if isinstance(span, CropSpan))


@dataclass(frozen=True, slots=True)
class BoxEvent:
    """One crop command: what was asked of which picture (from 1), and what became of it.

    ``box`` is None when it did not parse.
    """

    box: Box | None
    error: TurnError | None = None
    image: int = 1


@dataclass(frozen=True, slots=True)
class Reward:
    """A trajectory's reward and its parts (paper 3.3), each already weighted and capped."""

    accuracy: float
    format: float
    validity: float
    length: float

    @property
    def total(self) -> float:
        """The sum r_i that Eq. 1 normalises."""
        return self.accuracy + self.format + self.validity + self.length


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished attempt. ``events`` lists every crop command in order, refused ones included.

    ``num_prompt_tokens`` adds up what was before each turn, which is what an endpoint charges for; 0 for an
    engine that does not count.
    """

    question_id: str
    sample_index: int
    prompt: Prompt
    spans: tuple[Span, ...]
    events: tuple[BoxEvent, ...]
    stop: StopReason
    detail: str = ""
    reward: Reward | None = None
    num_prompt_tokens: int = 0

    @property
    def is_unasked(self) -> bool:
        """What the model was given filled its context, so that it never got to write a word."""
        return self.stop is StopReason.CONTEXT_LIMIT and not self.sampled_text

    @property
    def is_our_failure(self) -> bool:
        """We broke, or asked what does not fit: no reward and no score may be drawn from it."""
        return self.stop.is_our_failure or self.is_unasked

    @property
    def can_be_compared(self) -> bool:
        """There are tokens that the model sampled in a sound attempt, for the trainer to score again."""
        return not self.is_our_failure and self.num_sampled_tokens > 0

    @property
    def text(self) -> str:
        """The assistant's turn as text: what was sampled and what we told it; crops leave no text."""
        return "".join(span.text for span in self.spans if not isinstance(span, CropSpan))

    @property
    def sampled_text(self) -> str:
        """Only what the model wrote."""
        return "".join(span.text for span in self.spans if isinstance(span, SampledSpan))

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens the model sampled; 0 for an engine that reports none."""
        return sum(span.num_tokens or 0 for span in self.spans if isinstance(span, SampledSpan))

    @property
    def accepted_boxes(self) -> tuple[Box, ...]:
        """The boxes that were answered with a crop, in seen pixels."""
        return tuple(event.box for event in self.events if event.box is not None and event.error is None)

    @property
    def errors(self) -> tuple[TurnError, ...]:
        """The named protocol errors, in order."""
        return tuple(event.error for event in self.events if event.error is not None)

    @property
    def crops(self) -> tuple[CropSpan, ...]:
        """The crops the model was given, in order."""
        return tuple(span for span in self.spans if isinstance(span, CropSpan))

    def with_reward(self, reward: Reward) -> "Trajectory":
        """The same trajectory, scored."""
        return replace(self, reward=reward)


# A token limit that is none: only the context bounds the turn.
AS_MANY_AS_FIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One turn to generate: the prompt, the assistant's turn so far, and when to stop.

    Generation ends after a string of ``stops`` was sampled (its tokens are kept), at the end-of-turn token,
    or after ``max_new_tokens``. ``temperature`` 0 is greedy. The seed makes a sampled turn reproducible on
    one engine. ``shows_drafts`` asks an engine that can (:class:`models.engine.DraftingEngine`) for the text
    while it is written.
    """

    request_id: str
    prompt: Prompt
    spans: tuple[Span, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    seed: int | None = None
    shows_drafts: bool = False


Finish = Literal["stop", "end", "length", "context", "error"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What an engine returns for one request.

    ``finish`` says why it stopped: a stop string, the end-of-turn token, the request's token limit, the
    engine's context limit, or an engine failure (``error`` says which, ``span`` is then empty).
    ``context_tokens`` is the length of the sequence that the piece was appended to, 0 for an engine that does
    not count it.
    """

    request_id: str
    span: SampledSpan
    finish: Finish
    error: str = ""
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What a request in flight has written since its last draft; whole characters.

    The drafts of a turn, joined, are the beginning of its piece's text.
    """

    request_id: str
    text: str
