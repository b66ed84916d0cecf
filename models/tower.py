"""Calls of the vision tower: which pictures are looked at together, and what comes out.

Kernels are chosen by the size of a call, so on a CPU the last bits of a picture's features depend on how many
others are looked at with it, though not on which. A trainer that must have the same bits again after it was
interrupted, whatever it still has in its cache by then, therefore makes calls of one size: a ``bunch`` of
pictures of one shape, filled up with repetitions.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import linear

from models.region import Picture

# "one": a call per picture. "bunch": see above. "together": as many as memory allows.
Grouping = Literal["one", "bunch", "together"]
BUNCH = 8
MAX_PIXELS = 1 << 23  # of a call; more do not make it faster


def calls(pictures: Sequence[Picture], grouping: Grouping) -> Iterator[tuple[list[int], list[Picture]]]:
    """The calls that look at all pictures: the numbers of those whose features are wanted, which come first,
    and all that are looked at."""
    if grouping == "one":
        yield from (([number], [picture]) for number, picture in enumerate(pictures))
    elif grouping == "bunch":
        for numbers in _bunches(pictures):
            filling = [numbers[-1]] * (BUNCH - len(numbers))
            yield numbers, [pictures[number] for number in (*numbers, *filling)]
    else:
        for numbers in _up_to_the_limit(pictures):
            yield numbers, [pictures[number] for number in numbers]


def _bunches(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    def shape(number: int) -> tuple[int, int]:
        return pictures[number].size.width, pictures[number].size.height

    for _, same in groupby(sorted(range(len(pictures)), key=shape), key=shape):
        numbers = list(same)
        yield from (numbers[start : start + BUNCH] for start in range(0, len(numbers), BUNCH))


def _up_to_the_limit(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    numbers: list[int] = []
    area = 0
    for number, picture in enumerate(pictures):
        if numbers and area + picture.size.area > MAX_PIXELS:
            yield numbers
            numbers, area = [], 0
        numbers.append(number)
        area += picture.size.area
    if numbers:
        yield numbers


def tower_features(tower: nn.Module, patches: Tensor, grids: Tensor) -> list[Tensor]:
    """Features (visual tokens, D) per picture, from patches (N, values) and grids (pictures, 3)."""
    dtype = next(tower.parameters()).dtype
    merged = tower(patches.to(dtype), grid_thw=grids).pooler_output  # (visual tokens, D)
    visual_tokens = grids.prod(dim=1) * len(merged) // grids.prod(dim=1).sum()
    return list(merged.split(visual_tokens.tolist()))


class PatchProjection(nn.Conv3d):
    """The tower's first layer as the matrix product that it is: its kernel is as large as its stride, so
    every patch (C, t, p, p) has one output. PyTorch's convolution takes several times as long for that."""

    def forward(self, input: Tensor) -> Tensor:
        """Embeddings (N, D, 1, 1, 1) of patches (N, C, t, p, p)."""
        found = linear(input.flatten(1), self.weight.flatten(1))
        return found[:, :, None, None, None]

    @classmethod
    def replace_in(cls, tower: Any) -> None:
        """Let a tower use it; weights and their names stay."""
        layer = tower.patch_embed.proj
        assert isinstance(layer, nn.Conv3d), f"the tower begins with {type(layer).__name__}"
        assert layer.kernel_size == layer.stride, "patches overlap"
        assert layer.bias is None, "patches have a bias"
        layer.__class__ = cls
