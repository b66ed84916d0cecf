"""The R-GRPO objective: Eq. 2 of the paper and the three aggregations in common use, as pure tensor
functions.

Only tokens that the policy sampled carry loss. Prompt tokens, crops and messages of ours are context; the
mask comes from the trajectory, which knew who wrote each token, and is never guessed here.

``paper-eq2`` is the objective as printed: minus the mean over questions of the *sum* over the M trajectories
of ``exp(S - stopgrad(S)) A``, where S is the *sum* of a trajectory's sampled log-probs. Its ratio is 1, so
there is nothing to clip, its value is the mean advantage, and its gradient is A grad S: written here in log
space, for a product of probabilities underflows.

The other three multiply a clipped per-token ratio by the advantage and differ in what they divide by:
``seq-mean-token-mean`` (GRPO), ``token-mean`` (DAPO), ``seq-mean-token-sum-norm`` (Dr. GRPO). Clipping acts
only when ``old_logprobs`` differ from the current ones; with one optimiser step per batch of rollouts they
differ only where rollouts are one update old (``rgrpo.overlap``): they are then those of the engine that
sampled.

With ``beta`` above 0 (A.3 has 0) the KL to the starting model is added. Eq. 3 is written on probabilities of
whole sequences, whose ratio overflows; it is read per token here: beta times the sum over sampled tokens of
``r - 1 - log r`` with ``r = pi_ref / pi``, each token with the weight that the aggregation gives it (Eq. 2:
one over the number of questions). The clip and the engine's weight do not touch it.

Every divisor is a :class:`Totals` of the global batch. A sum over micro-batches and ranks therefore gives the
same gradient however the batch is cut.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.config import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Totals:
    """What a global batch holds, over all ranks and micro-batches. Trajectories that are skipped because
    their advantage is zero count; those left out (unscored, masked) do not."""

    num_questions: int
    num_trajectories: int
    num_tokens: int
    max_tokens: int


class PolicyLoss(NamedTuple):
    """``loss`` (scalar) is this micro-batch's share: shares add up to the loss of the global batch.
    ``num_clipped`` counts sampled tokens whose gradient the clip removed; ``reference_kl`` (B,) is each row's
    KL to the reference, summed over its tokens, nats, without gradient; None without a reference."""

    loss: Tensor
    num_clipped: Tensor
    reference_kl: Tensor | None = None


def policy_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    sampled: Tensor,
    totals: Totals,
    config: ObjectiveConfig,
    engine_weight: Tensor | None = None,
    reference_logprobs: Tensor | None = None,
) -> PolicyLoss:
    """This micro-batch's share of the loss.

    ``logprobs``, ``old_logprobs`` (B, T) nats: of the current policy, and of the one that the ratio is taken
    against; ``advantages`` (B,); ``sampled`` (B, T) bool; ``engine_weight`` (B, T) or None, see
    :func:`truncated_weight`: Eq. 2 has none, with ``paper-eq2`` it is not used; ``reference_logprobs``
    (B, T) nats of the starting model, needed exactly when ``config.beta`` is above 0.
    """
    assert (reference_logprobs is not None) == (config.beta > 0), "a reference goes with beta > 0"
    if config.aggregation == "paper-eq2":
        found = _eq2(logprobs, advantages, sampled, totals)
    else:
        found = _clipped(logprobs, old_logprobs, advantages, sampled, totals, config, engine_weight)
    if reference_logprobs is None:
        return found
    kl = reference_k3(logprobs, reference_logprobs, sampled)
    penalty = (kl * _token_weights(sampled.to(logprobs.dtype), totals, config)).sum()
    return PolicyLoss(found.loss + config.beta * penalty, found.num_clipped, kl.detach().sum(dim=1))


def _eq2(logprobs: Tensor, advantages: Tensor, sampled: Tensor, totals: Totals) -> PolicyLoss:
    log_likelihood = torch.where(sampled, logprobs, 0.0).sum(dim=1)  # S_i, (B,)
    ratio = torch.exp(log_likelihood - log_likelihood.detach())
    return PolicyLoss(-(ratio * advantages).sum() / max(totals.num_questions, 1), torch.tensor(0))


def _clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sampled: Tensor,
    totals: Totals,
    config: ObjectiveConfig,
    engine_weight: Tensor | None,
) -> PolicyLoss:
    advantages = advantages.unsqueeze(1)  # (B, 1)
    # Where nothing was sampled both sides are replaced: a masked inf - inf would still poison the gradient.
    ratio = torch.exp(torch.where(sampled, logprobs - old_logprobs, 0.0))
    free = ratio * advantages
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages
    token_loss = -torch.minimum(free, clipped)
    if engine_weight is not None:
        token_loss = token_loss * torch.where(sampled, engine_weight, 0.0)
    weights = _token_weights(sampled.to(logprobs.dtype), totals, config)
    return PolicyLoss((token_loss * weights).sum(), ((clipped < free) & sampled).sum())


def reference_k3(logprobs: Tensor, reference_logprobs: Tensor, sampled: Tensor) -> Tensor:
    """r - 1 - log r per token (B, T), r = pi_ref / pi; 0 where not sampled. Its mean over what the policy
    sampled is KL(policy || reference), nats; unlike the log ratio alone it is never negative."""
    log_ratio = torch.where(sampled, reference_logprobs - logprobs, 0.0)
    return torch.expm1(log_ratio) - log_ratio


def truncated_weight(logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(pi_trainer / pi_engine, cap) per token (B, T), without gradient: corrects for an engine whose
    probabilities differ from the trainer's (bfloat16, other kernels)."""
    return torch.exp((logprobs - engine_logprobs).detach()).clamp(max=cap)


def truncation(logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(1, cap / r) per token (B, T), r = pi_trainer / pi_engine, without gradient: what makes of a ratio r
    that is in the loss already (``old_logprobs`` are the engine's) the weight min(r, cap)."""
    return (cap * torch.exp((engine_logprobs - logprobs).detach())).clamp(max=1.0)


def mismatch_k3(logprobs: Tensor, engine_logprobs: Tensor, sampled: Tensor) -> Tensor:
    """Sum over sampled tokens of the k3 estimate of KL(engine || trainer), nats: r - 1 - log r, r =
    pi_trainer / pi_engine. All arguments (B, T)."""
    log_ratio = torch.where(sampled, logprobs - engine_logprobs, 0.0).detach()
    return (torch.expm1(log_ratio) - log_ratio).sum()


def _token_weights(mask: Tensor, totals: Totals, config: ObjectiveConfig) -> Tensor:
    """What each token's loss is multiplied by, (B, T). ``mask`` is 1.0 where sampled, else 0.0."""
    if config.aggregation == "paper-eq2":
        return mask / max(totals.num_questions, 1)
    if config.aggregation == "token-mean":
        return mask / max(totals.num_tokens, 1)
    if config.aggregation == "seq-mean-token-mean":
        per_row = mask.sum(dim=1, keepdim=True).clamp(min=1)  # a row without sampled tokens adds nothing
        return mask / (per_row * max(totals.num_trajectories, 1))
    return mask / (max(totals.num_trajectories, 1) * totals.max_tokens)  # seq-mean-token-sum-norm
