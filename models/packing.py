"""Lengths to micro-batches under a token budget.

A micro-batch is one packed row, which costs as much as it has tokens; rollouts of a question share the tokens
of its prompt. A shape that was seen before costs less than a new one (kernels are chosen or compiled per
shape), so lengths are rounded up to a multiple.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from models.errors import TrainingError

# Padded lengths are multiples of these, so that a run meets a dozen shapes instead of a hundred.
LENGTH_MULTIPLE = 16
ROW_MULTIPLE = 64


def padded_length(length: int) -> int:
    """The length of a row that holds ``length`` tokens."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def packed_length(length: int) -> int:
    """The length of one row that holds ``length`` tokens of many samples."""
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


def pack(lengths: Sequence[int], *, max_tokens: int) -> list[tuple[int, ...]]:
    """Every sample in exactly one micro-batch of at most ``max_tokens``, given as positions, longest first.

    Each goes into the first micro-batch that has room. Raises TrainingError when one sample alone is over the
    budget.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if order and lengths[order[0]] > max_tokens:
        raise TrainingError(
            f"A sample of {lengths[order[0]]} tokens exceeds tokens_per_micro_batch {max_tokens}. Raise the "
            "budget or drop longer samples (max_tokens)."
        )
    batches: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = lengths[index]
        place = next((number for number, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            batches.append([])
            room.append(max_tokens)
        batches[place].append(index)
        room[place] -= length
    return [tuple(batch) for batch in batches]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sample that goes on from a prompt it shares with others of the same ``group``; lengths in tokens."""

    group: Hashable
    prompt_length: int
    length: int


def pack_groups(samples: Sequence[Continuation], *, max_tokens: int) -> list[tuple[int, ...]]:
    """Every sample in exactly one micro-batch of at most ``max_tokens``, given as positions.

    A micro-batch costs its distinct prompts and its continuations. A group that fits into a micro-batch stays
    together. Raises TrainingError when one sample alone is over the budget.
    """
    groups: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(samples)), key=lambda index: (-samples[index].length, index)):
        groups.setdefault(samples[index].group, []).append(index)
    batches: list[list[int]] = []
    for members in groups.values():
        if batches and _cost(samples, [*batches[-1], *members]) <= max_tokens:
            batches[-1] += members
            continue
        batches.append([])
        for index in members:
            if _cost(samples, [index]) > max_tokens:
                raise TrainingError(
                    f"A sample of {samples[index].prompt_length} + {samples[index].length} tokens exceeds "
                    f"tokens_per_micro_batch {max_tokens}. Raise the budget or lower look.max_sampled_tokens."
                )
            if _cost(samples, [*batches[-1], index]) > max_tokens:
                batches.append([])
            batches[-1].append(index)
    return [tuple(batch) for batch in batches]


def _cost(samples: Sequence[Continuation], indices: Sequence[int]) -> int:
    """Tokens of a micro-batch."""
    chosen = [samples[index] for index in indices]
    prompts = {sample.group: sample.prompt_length for sample in chosen}
    return sum(prompts.values()) + sum(sample.length for sample in chosen)


def deal(lengths: Sequence[int], *, num_ranks: int) -> list[list[int]]:
    """Positions for each rank, shares of almost equal cost: longest first, dealt back and forth."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    for place, index in enumerate(order):
        turn, seat = divmod(place, num_ranks)
        hands[seat if turn % 2 == 0 else num_ranks - 1 - seat].append(index)
    return hands
