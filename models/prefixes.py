"""What sequences begin with in common, so that a packed row holds it once.

All prompts begin with the system prompt; the rollouts of a question have their whole prompt in common, its
picture included. A row is then a little tree: the common beginning, the prompts that several sequences go on
from, and of every sequence what is its own. No number changes: causal attention never looks ahead, so a
beginning is the same whatever follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.encoding import Encoded


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of a row, which go on from the part number ``parent``; ``sample`` is the sequence whose end they
    are, None for a beginning that several share."""

    tokens: Encoded
    parent: int | None
    sample: int | None


def share_beginnings(encoded: Sequence[Encoded], *, vision_start_id: int) -> list[Part]:
    """Every token of the sequences, in parts; what several of them begin with is one part for all of them.

    A part comes after the one it goes on from. The part of a sequence's own begins at the latest with the
    token that predicts the first sampled one: the first token of a part is never sampled.
    """
    prompts = [_Prompt.of(one, vision_start_id) for one in encoded]
    members: dict[tuple[object, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        members.setdefault(prompt.key, []).append(number)
    root = _common_length([prompts[numbers[0]].text for numbers in members.values()])
    parts = [Part(_cut(encoded[0], 0, root, vision_start_id), None, None)] if root else []
    begins: dict[
        int, tuple[int, int | None]
    ] = {}  # of each sequence: where its own tokens begin, their parent
    for numbers in members.values():
        start, parent = root, 0 if root else None
        end = prompts[numbers[0]].length
        if len(numbers) > 1 and end > start:
            parts.append(Part(_cut(encoded[numbers[0]], start, end, vision_start_id), parent, None))
            start, parent = end, len(parts) - 1
        begins |= dict.fromkeys(numbers, (start, parent))
    # Those of one shape side by side: attention takes them in one call.
    order = sorted(begins, key=lambda number: (begins[number][0], len(encoded[number]), number))
    for number in order:
        start, parent = begins[number]
        own = _cut(encoded[number], start, len(encoded[number]), vision_start_id)
        parts.append(Part(own, parent, number))
    return parts


@dataclass(frozen=True, slots=True, eq=False)
class _Prompt:
    """What comes before the token that predicts a sequence's first sampled one: ``length`` tokens, of which
    ``text`` come before the first picture. Equal prompts have equal keys."""

    key: tuple[object, ...]
    text: NDArray[np.int64]
    length: int

    @classmethod
    def of(cls, one: Encoded, vision_start_id: int) -> "_Prompt":
        first_sampled = int(one.sampled.argmax()) if one.sampled.any() else len(one)
        ids = one.ids[: first_sampled - 1]
        starts = np.flatnonzero(ids == vision_start_id)
        pictures = one.pictures[: len(starts)]
        key = (ids.tobytes(), *(picture.digest for picture in pictures))
        return cls(key, ids[: starts[0]] if len(starts) else ids, len(ids))


def _common_length(texts: Sequence[NDArray[np.int64]]) -> int:
    """How many tokens all of several texts begin with; 0 for a single one."""
    if len(texts) < 2:
        return 0
    shortest = min(map(len, texts))
    differs = np.any([text[:shortest] != texts[0][:shortest] for text in texts], axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def _cut(one: Encoded, start: int, stop: int, vision_start_id: int) -> Encoded:
    """Tokens ``start`` to ``stop`` with their rotary positions and pictures."""
    place = slice(start, stop)
    before, within = (int((ids == vision_start_id).sum()) for ids in (one.ids[:start], one.ids[place]))
    return Encoded(
        ids=one.ids[place],
        sampled=one.sampled[place],
        engine_logprobs=one.engine_logprobs[place],
        versions=one.versions[place],
        positions=one.positions[:, place],
        pictures=one.pictures[before : before + within],
    )
