"""What an update says of the tokens that it trained on, by hand."""

import math

import pytest
import torch
from torch import Tensor

from models import distributed
from models.config import RGRPOConfig
from models.rgrpo.objective import PolicyLoss
from models.rgrpo.update import _Seen

CONFIG = RGRPOConfig(max_mismatch_kl=1.0)
# pi_trainer / pi_engine per token of two trajectories; what is not sampled would change every number.
RATIOS = torch.tensor([[2.0, 0.5, 1.0, 50.0], [4.0, 50.0, 50.0, 50.0]])
SAMPLED = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.fixture(autouse=True)
def one_rank() -> None:
    distributed.start(num_threads=1)


def seen(*parts: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The metrics of micro-batches, each of ratios and the mask of what was sampled, (B, T)."""
    found, num_samples = _Seen(), 0
    for ratios, sampled in parts:
        logprobs = torch.full_like(ratios, -3.0)
        ids = [f"q#{num_samples + row}" for row in range(len(ratios))]
        nothing = PolicyLoss(torch.tensor(0.0), torch.tensor(0))
        found.add(ids, logprobs, logprobs - ratios.log(), sampled, nothing)
        num_samples += len(ratios)
    return found.metrics(CONFIG, torch.zeros(num_samples))


def test_four_ratios_by_hand() -> None:
    # (2 + 1/2 + 1 + 4) / 4; 7.5^2 / (4 (4 + 1/4 + 1 + 16)); the sum of r - 1 - log r is 3.5 - log 4.
    metrics = seen((RATIOS, SAMPLED))
    assert metrics["rgrpo/engine_ratio"] == pytest.approx(1.875)
    assert metrics["rgrpo/effective_share"] == pytest.approx(56.25 / 85)
    assert metrics["rgrpo/mismatch_kl"] == pytest.approx((3.5 - math.log(4)) / 4)
    assert metrics["rgrpo/mismatch_max"] == pytest.approx(math.log(4))
    assert (metrics["rgrpo/engine_ratio_min"], metrics["rgrpo/engine_ratio_max"]) == pytest.approx((0.5, 4))
    assert metrics["rgrpo/trained_tokens"] == 4


def test_the_largest_difference_may_be_downwards() -> None:
    metrics = seen((RATIOS / 2, SAMPLED))
    assert metrics["rgrpo/mismatch_max"] == pytest.approx(math.log(4))
    assert (metrics["rgrpo/engine_ratio_min"], metrics["rgrpo/engine_ratio_max"]) == pytest.approx((0.25, 2))


def test_they_are_over_the_tokens_of_the_batch_and_not_of_a_micro_batch() -> None:
    assert seen((RATIOS[:1], SAMPLED[:1]), (RATIOS[1:], SAMPLED[1:])) == pytest.approx(
        seen((RATIOS, SAMPLED))
    )


@pytest.mark.parametrize(("ratio", "mean"), [(1.0, 1.0), (0.5, 0.5)])
def test_equal_ratios_leave_every_token_its_say(ratio: float, mean: float) -> None:
    equal = torch.where(SAMPLED, ratio, 50.0)
    metrics = seen((equal, SAMPLED))
    assert metrics["rgrpo/engine_ratio"] == pytest.approx(mean)
    assert metrics["rgrpo/effective_share"] == pytest.approx(1.0)
