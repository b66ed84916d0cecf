"""Weights in memory that two processes share: one that trains writes them, one that samples reads them.

The memory has no name (``memfd_create``): the reader is handed the writer's descriptor, nothing lies in a
folder, and nothing is left when both processes are gone, however they end.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: a cache line, and more than any type needs


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the memory: ``offset`` in bytes, ``dtype`` as torch names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SharedWeights:
    """One end of the memory; ``descriptor`` is the other end's, without it the memory is made."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("vlm-r3-weights") if descriptor is None else descriptor
        self._memory: mmap.mmap | None = None

    def write(self, weights: Iterable[tuple[str, Tensor]]) -> list[Place]:
        """Copy all tensors into the memory, which grows when it must; returns where each lies.

        The reader must not read meanwhile.
        """
        tensors = dict(weights)
        places, size = [], 0
        for name, tensor in tensors.items():
            places.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), size))
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)
        for place, (_, shared) in zip(places, self.read(places), strict=True):
            shared.copy_(tensors[place.name])
        return places

    def read(self, places: Iterable[Place]) -> Iterator[tuple[str, Tensor]]:
        """Every name and its tensor, which is the memory itself and changes with it."""
        size = os.fstat(self.descriptor).st_size
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self.descriptor, size)
        for place in places:
            dtype = getattr(torch, place.dtype)
            count = torch.Size(place.shape).numel()
            flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=place.offset)
            yield place.name, flat.view(place.shape)

    def close(self) -> None:
        """Give this end back; the memory itself goes when the last tensor of it does."""
        self._memory = None
        os.close(self.descriptor)
