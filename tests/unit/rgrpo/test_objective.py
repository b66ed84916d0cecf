import math

import pytest
import torch

from models.config import ObjectiveConfig
from models.rgrpo.objective import (
    Totals,
    mismatch_k3,
    policy_loss,
    reference_k3,
    truncated_weight,
    truncation,
)

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
def test_a_weight_that_is_no_number_counts_only_where_it_was_sampled(aggregation):
    weight = torch.where(SAMPLED, 2.0, math.nan)
    loss, grad = gradient(aggregation, weight=weight)
    without, expected = gradient(aggregation)
    factor = 1.0 if aggregation == "paper-eq2" else 2.0  # Eq. 2 has no such weight
    torch.testing.assert_close(loss.loss, factor * without.loss)
    torch.testing.assert_close(grad, factor * expected)


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


def test_of_a_ratio_in_the_loss_only_the_cap_is_left_to_weigh():
    # Rollouts that are one update old: r = e^1 = 2.718 with A = -2 is not clipped, and is cut at 2, so the
    # gradient is -A * 2 / 3 tokens. r = e^-1 = 0.368 with A = +1 is neither: -A * 0.368 / 3. The second token
    # of the first row, r = e^1 with A = +1, is beyond 1.2: nothing.
    start = torch.tensor([[-2.0, -1.0, -9.0], [-1.0, -9.0, -9.0]])
    engine = torch.tensor([[-1.0, -2.0, -9.0], [-2.0, -9.0, -9.0]])
    weight = truncation(start.requires_grad_(), engine, cap=2.0)
    assert not weight.requires_grad
    loss, grad = gradient("token-mean", logprobs=start.detach(), old=engine, weight=weight)
    expected = torch.tensor([[-math.exp(-1) / 3, 0.0, 0.0], [2 * 2 / 3, 0.0, 0.0]])
    torch.testing.assert_close(grad, expected)
    assert loss.num_clipped == 1


def test_mismatch_k3_by_hand():
    # Token 1: log r = 0.1 -> e^0.1 - 1 - 0.1 = 0.0051709. Token 2 agrees: 0. The third is masked.
    trainer = torch.tensor([[-0.9, -1.0, -9.0]])
    engine = torch.tensor([[-1.0, -1.0, 0.0]])
    found = mismatch_k3(trainer, engine, torch.tensor([[True, True, False]]))
    assert found.item() == pytest.approx(math.exp(0.1) - 1.1, abs=1e-6)


REFERENCE = torch.tensor([[-0.8, -1.0, -9.0], [-1.5, -9.0, -9.0]])


def penalised(aggregation, beta, *, logprobs=None, advantages=ADVANTAGES, totals=TOTALS, rows=slice(None)):
    """The loss with a reference, as a function of the log-probs; double precision for finite differences."""
    start = torch.tensor([[-0.5, -1.0, -9.0], [-2.0, -9.0, -9.0]]) if logprobs is None else logprobs
    start = start.double()

    def loss(current):
        return policy_loss(
            current,
            old_logprobs=start[rows],
            advantages=advantages[rows].double(),
            sampled=SAMPLED[rows],
            totals=totals,
            config=ObjectiveConfig(aggregation=aggregation, beta=beta),
            reference_logprobs=REFERENCE[rows].double(),
        )

    return loss, start[rows].clone().requires_grad_()


def test_k3_to_the_reference_by_hand():
    # log r = -0.8 + 0.5 = -0.3 -> e^-0.3 - 1 + 0.3; the second token agrees; log r = 0.5 -> e^0.5 - 1.5.
    found = reference_k3(torch.tensor([[-0.5, -1.0, -9.0], [-2.0, -9.0, -9.0]]), REFERENCE, SAMPLED)
    expected = torch.tensor([[math.exp(-0.3) - 0.7, 0, 0], [math.exp(0.5) - 1.5, 0, 0]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_penalty_pulls_every_token_with_the_weight_that_it_has(aggregation):
    # Weights as in test_three_tokens_by_hand; d/d logp of (r - 1 - log r) is 1 - r: 1 - e^-0.3, 0, 1 - e^0.5.
    first, second = {
        "paper-eq2": (1, 1),
        "seq-mean-token-mean": (1 / 4, 1 / 2),
        "token-mean": (1 / 3, 1 / 3),
        "seq-mean-token-sum-norm": (1 / 6, 1 / 6),
    }[aggregation]
    function, current = penalised(aggregation, 0.1)
    result = function(current)
    result.loss.backward()
    pull = torch.tensor([[first * (1 - math.exp(-0.3)), 0, 0], [second * (1 - math.exp(0.5)), 0, 0]])
    _, without = gradient(aggregation)
    torch.testing.assert_close(current.grad.float(), without + 0.1 * pull)
    assert result.reference_kl.tolist() == pytest.approx([math.exp(-0.3) - 0.7, math.exp(0.5) - 1.5])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_penalty_against_finite_differences(aggregation):
    # Without advantages the loss is the penalty alone, which has no stopped gradient.
    function, current = penalised(aggregation, 0.3, advantages=torch.zeros(2))
    assert torch.autograd.gradcheck(lambda logprobs: function(logprobs).loss, (current,))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_policy_that_is_the_reference_is_not_pulled(aggregation):
    function, current = penalised(aggregation, 0.3, logprobs=REFERENCE)
    result = function(current)
    result.loss.backward()
    assert result.reference_kl.tolist() == [0, 0]
    _, without = gradient(aggregation, logprobs=REFERENCE)
    torch.testing.assert_close(current.grad.float(), without)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_of_a_penalised_loss_add_up_to_the_whole(aggregation):
    function, current = penalised(aggregation, 0.3)
    whole = function(current).loss
    whole.backward()
    parts = [penalised(aggregation, 0.3, rows=slice(row, row + 1)) for row in (0, 1)]
    losses = [part(start).loss for part, start in parts]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(torch.cat([start.grad for _, start in parts]), current.grad)
    torch.testing.assert_close(sum(losses), whole)


def test_where_nothing_was_sampled_the_reference_pulls_nothing_even_if_it_is_not_finite():
    start = torch.tensor([[-0.5, -1.0, -math.inf], [-2.0, math.nan, -math.inf]])
    function, current = penalised("token-mean", 0.3, logprobs=start)
    loss = function(current).loss
    loss.backward()
    assert loss.isfinite()
    assert current.grad[~SAMPLED].tolist() == [0.0, 0.0, 0.0]
