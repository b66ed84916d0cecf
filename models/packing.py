"""Lengths to micro-batches under a token budget, padding counted.

A forward pass costs what its padded rectangle holds, and a shape that was seen before costs less than a new
one (kernels are chosen or compiled per shape). Samples of similar length therefore share a micro-batch, and
the padded length is rounded up to a multiple.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import TrainingError

# Padded lengths are multiples of this, so that a run meets a dozen shapes instead of a hundred.
LENGTH_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples for one forward pass: positions in the list of lengths, and the padded length of every row."""

    indices: tuple[int, ...]
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the padded rectangle."""
        return len(self.indices) * self.length


def padded_length(length: int) -> int:
    """The length of a row that holds ``length`` tokens."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def pack(lengths: Sequence[int], *, max_tokens: int) -> list[MicroBatch]:
    """Every sample in exactly one micro-batch of at most ``max_tokens``, longest first.

    The same lengths give the same shapes in whatever order they come. Raises TrainingError when one sample
    alone is over the budget.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if order and padded_length(lengths[order[0]]) > max_tokens:
        raise TrainingError(
            f"A sample of {lengths[order[0]]} tokens (padded {padded_length(lengths[order[0]])}) exceeds "
            f"tokens_per_micro_batch {max_tokens}. Raise the budget or drop longer samples (max_tokens)."
        )
    batches, start = [], 0
    while start < len(order):
        length = padded_length(lengths[order[start]])
        rows = order[start : start + max_tokens // length]
        batches.append(MicroBatch(tuple(rows), length))
        start += len(rows)
    return batches


def deal(lengths: Sequence[int], *, num_ranks: int) -> list[list[int]]:
    """Positions for each rank, shares of almost equal cost: longest first, dealt back and forth."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    for place, index in enumerate(order):
        turn, seat = divmod(place, num_ranks)
        hands[seat if turn % 2 == 0 else num_ranks - 1 - seat].append(index)
    return hands
