"""Gradients that are no numbers are told by sample, padded and packed rows alike."""

import pytest
import torch

from models.gradient_watch import GradientWatch


def backward(watch: GradientWatch, factors: torch.Tensor, own: tuple[slice, ...] = ()) -> None:
    """A pass whose gradient at its inputs (B, T, 1) is ``factors`` (B, T)."""
    inputs = torch.zeros(*factors.shape, 1, requires_grad=True)
    (watch.follow(inputs * 1.0, own)[..., 0] * factors).sum().backward()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_are_samples(value: float) -> None:
    watch = GradientWatch()
    backward(watch, torch.tensor([[1.0, 1.0], [1.0, value]]))
    backward(watch, torch.ones(1, 2))
    assert watch.take([(2, 0), (1,)], 3).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_in_one_row_are_told_apart(value: float) -> None:
    watch = GradientWatch()
    # The first place is shared, the last is padding.
    own = (slice(1, 3), slice(3, 5))
    backward(watch, torch.tensor([[value, 1.0, 1.0, value, 1.0, value]]), own)
    assert watch.take([(1, 0)], 2).isnan().tolist() == [True, False]


def test_a_pass_of_nobody_counts_for_nobody_and_each_pass_once() -> None:
    watch = GradientWatch()
    backward(watch, torch.tensor([[torch.nan]]))
    assert watch.take([()], 1).tolist() == [0.0]
    backward(watch, torch.ones(1, 1))
    assert watch.take([(0,)], 1).tolist() == [0.0]
