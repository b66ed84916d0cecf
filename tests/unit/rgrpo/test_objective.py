import math

import pytest
import torch

from models.config import ObjectiveConfig
from models.rgrpo.objective import Totals, mismatch_k3, policy_loss, truncated_weight

AGGREGATIONS = ("paper-eq2", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm")
SAMPLED = torch.tensor([[True, True, False], [True, False, False]])
ADVANTAGES = torch.tensor([1.0, -2.0])
TOTALS = Totals(num_questions=1, num_trajectories=2, num_tokens=3, max_tokens=3)


def gradient(aggregation, *, logprobs=None, old=None, totals=TOTALS, weight=None, rows=slice(None)):
    start = torch.tensor([[-0.5, -1.0, -9.0], [-2.0, -9.0, -9.0]]) if logprobs is None else logprobs
    current = start[rows].clone().requires_grad_()
    loss = policy_loss(
        current,
        old_logprobs=(start if old is None else old)[rows],
        advantages=ADVANTAGES[rows],
        sampled=SAMPLED[rows],
        totals=totals,
        config=ObjectiveConfig(aggregation=aggregation),
        engine_weight=weight,
    )
    loss.loss.backward()
    return loss, current.grad


def test_three_tokens_by_hand():
    # Two trajectories of one question, A = +1 with two sampled tokens and A = -2 with one. At ratio 1 the
    # gradient of every token is -A times its weight:
    #   paper-eq2                1/Q          = 1         -> -1, -1 | +2
    #   seq-mean-token-mean      1/(B n_i)    = 1/4 | 1/2 -> -1/4, -1/4 | +1
    #   token-mean               1/tokens     = 1/3       -> -1/3, -1/3 | +2/3
    #   seq-mean-token-sum-norm  1/(B L)      = 1/6       -> -1/6, -1/6 | +1/3
    expected = {
        "paper-eq2": (-1, 2),
        "seq-mean-token-mean": (-1 / 4, 1),
        "token-mean": (-1 / 3, 2 / 3),
        "seq-mean-token-sum-norm": (-1 / 6, 1 / 3),
    }
    for aggregation, (first, second) in expected.items():
        _, grad = gradient(aggregation)
        torch.testing.assert_close(grad, torch.tensor([[first, first, 0.0], [second, 0.0, 0.0]]))


def test_the_value_of_eq_2_is_minus_the_sum_of_advantages():
    # Every ratio is 1, so L = -(1 - 2) / 1 question = 1.
    assert gradient("paper-eq2")[0].loss.item() == pytest.approx(1.0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_masked_tokens_have_zero_gradient_even_when_they_are_not_finite(aggregation):
    start = torch.tensor([[-0.5, -1.0, -math.inf], [-2.0, math.nan, -math.inf]])
    loss, grad = gradient(aggregation, logprobs=start)
    assert loss.loss.isfinite()
    assert grad[~SAMPLED].tolist() == [0.0, 0.0, 0.0]
    assert grad[SAMPLED].isfinite().all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_to_the_whole(aggregation):
    whole_loss, whole = gradient(aggregation)
    parts = [gradient(aggregation, rows=slice(row, row + 1)) for row in (0, 1)]
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), whole)
    torch.testing.assert_close(sum(loss.loss for loss, _ in parts), whole_loss.loss)


def test_the_clip_stops_a_ratio_that_already_moved_far_enough():
    # Ratio e^0.5 = 1.65 > 1.2 with A = +1: no gradient. Ratio e^-0.5 = 0.61 < 0.8 with A = -2: none either.
    # The second token of the first row has ratio 1: -1/4 as above.
    old = torch.tensor([[-1.0, -1.0, 0.0], [-1.5, 0.0, 0.0]])
    loss, grad = gradient("seq-mean-token-mean", old=old)
    torch.testing.assert_close(grad, torch.tensor([[0, -0.25, 0], [0, 0, 0]]))
    assert loss.num_clipped == 2


def test_the_clip_does_not_protect_the_wrong_direction():
    # Ratio e^-0.5 with A = +1: the pessimistic side keeps the free term; d(-r A)/d logp = -r A = -0.6065,
    # over 4.
    old = torch.tensor([[0.0, -1.0, 0.0], [-2.0, 0.0, 0.0]])
    _, grad = gradient("seq-mean-token-mean", old=old)
    assert grad[0, 0].item() == pytest.approx(-math.exp(-0.5) / 4)


def test_engine_weight_multiplies_and_is_truncated():
    # pi_trainer / pi_engine = e^1 = 2.718 is cut at 2; e^-1 = 0.368 is kept.
    trainer, engine = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[-2.0, -1.0]])
    weight = truncated_weight(trainer, engine, cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([[2.0, math.exp(-1)]]))
    assert not weight.requires_grad
    _, grad = gradient("token-mean", weight=torch.tensor([[2.0, 0.5, 1.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(grad, torch.tensor([[-2 / 3, -1 / 6, 0], [2 / 3, 0, 0]]))


def test_mismatch_k3_by_hand():
    # Token 1: log r = 0.1 -> e^0.1 - 1 - 0.1 = 0.0051709. Token 2 agrees: 0. The third is masked.
    trainer = torch.tensor([[-0.9, -1.0, -9.0]])
    engine = torch.tensor([[-1.0, -1.0, 0.0]])
    found = mismatch_k3(trainer, engine, torch.tensor([[True, True, False]]))
    assert found.item() == pytest.approx(math.exp(0.1) - 1.1, abs=1e-6)
