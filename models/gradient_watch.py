"""Which samples' gradients are not finite, told without waiting for the device until somebody asks."""

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientWatch:
    """Looks at the gradient that arrives at the inputs of each micro-batch.

    What is not a number above a sample's inputs is none there either, and the rows do not mix.
    """

    def __init__(self) -> None:
        self._is_finite: list[Tensor] = []

    def follow(self, inputs: Tensor) -> Tensor:
        """The same inputs (B, T, D), whose gradient will be looked at; B rows are B samples."""
        if inputs.requires_grad:
            inputs.register_hook(self._note)
        return inputs

    def take(self, numbers: Sequence[Sequence[int]], count: int) -> Tensor:
        """For each of ``count`` samples 0, or NaN when its gradient since the last call is not finite.

        ``numbers`` are the samples of each backward pass, in order; empty where a pass was none of theirs.
        """
        found, self._is_finite = self._is_finite, []
        values = torch.zeros(count)
        for rows, is_finite in zip(numbers, found, strict=True):
            if rows:
                values[list(rows)] = torch.where(is_finite.cpu(), 0.0, torch.nan)
        return values

    def _note(self, gradient: Tensor) -> None:
        self._is_finite.append(gradient.isfinite().flatten(1).all(dim=1))
