"""Which samples' gradients are not finite, told without waiting for the device until somebody asks."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor


class GradientWatch:
    """Looks at the gradient that arrives at the inputs of each micro-batch.

    What is not a number above a sample's inputs is none there either, and the rows do not mix.
    """

    def __init__(self) -> None:
        self._is_finite: list[Tensor] = []

    def follow(self, inputs: Tensor, own: Sequence[slice] = ()) -> Tensor:
        """The same inputs (B, T, D), whose gradient will be looked at; B rows are B samples.

        With ``own`` there is one row, of as many samples, and these are the places that no others share.
        """
        if inputs.requires_grad:
            inputs.register_hook(partial(self._note, own=own))
        return inputs

    def take(self, numbers: Sequence[Sequence[int]], count: int) -> Tensor:
        """For each of ``count`` samples 0, or NaN when its gradient since the last call is not finite.

        ``numbers`` are the samples of each backward pass, in order; empty where a pass was none of theirs.
        """
        found, self._is_finite = self._is_finite, []
        values = torch.zeros(count)
        for rows, is_finite in zip(numbers, found, strict=True):
            if rows:
                values[list(rows)] = torch.where(is_finite.cpu()[: len(rows)], 0.0, torch.nan)
        return values

    def _note(self, gradient: Tensor, *, own: Sequence[slice]) -> None:
        samples = [gradient[0, place] for place in own] if own else gradient
        self._is_finite.append(torch.stack([sample.isfinite().all() for sample in samples]))
