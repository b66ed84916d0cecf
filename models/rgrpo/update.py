"""One policy update from a batch of rollouts: forward, Eq. 2 (or another aggregation), backward, AdamW.

There is one optimiser step per batch, so the policy that is trained is the one that sampled: the ratio of
the objective is taken against the trainer's own log-probs. How far the engine's probabilities are from the
trainer's is measured on the same tokens, before the step, and is a gate: a wrong mask, a shifted picture or
stale weights in the engine all show there first.

With ``rgrpo.overlap`` the policy is one update ahead of the one that sampled. The ratio is then taken against
the log-probs of the engine that sampled, and the distance to them is no gate, for most of it is honest:
:mod:`models.rgrpo.overlap` compares like with like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models import distributed
from models.config import RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.packing import Continuation, pack_groups
from models.policy import Batch, Policy, by_sample, collate_packed
from models.rgrpo.guards import require_agreement
from models.rgrpo.objective import (
    PolicyLoss,
    Totals,
    mismatch_k3,
    policy_loss,
    truncated_weight,
    truncation,
)
from models.schedule import warmup_then_cosine


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One trajectory to train on."""

    question_id: str
    sample_index: int
    encoded: Encoded
    advantage: float

    @property
    def id(self) -> str:
        """Its name in messages."""
        return f"{self.question_id}#{self.sample_index}"

    @property
    def continuation(self) -> Continuation:
        """Its size for packing: the rollouts of a question share their prompt."""
        prompt_length = int(self.encoded.sampled.argmax())
        return Continuation(self.question_id, prompt_length, len(self.encoded) - prompt_length)


def update_policy(
    engine: DeepSpeedEngine,
    samples: Sequence[Sample],
    *,
    spare: Encoded,
    totals: Totals,
    config: RGRPOConfig,
    learning_rate: float,
    reference: Policy | None = None,
    before_step: Callable[[], dict[str, float]] = dict,
) -> dict[str, float]:
    """Train on this rank's samples; returns the update's metrics, the same on every rank.

    ``reference`` is the starting model, needed exactly when ``objective.beta`` is above 0. ``before_step`` is
    called last before the optimiser's step, on every rank, and its metrics are added. Nothing else happens
    when no rank has a sample. Before the optimiser step, raises TrainingError when a log-prob or a gradient
    is not finite, and GuardError when engine and trainer disagree by more than ``max_mismatch_kl``.
    """
    metrics = accumulate_gradient(
        engine, samples, spare=spare, totals=totals, config=config, reference=reference
    )
    watched = before_step()
    if metrics is None:
        return {"rgrpo/updated": 0.0, **watched}
    ids = [sample.id for sample in samples]
    gradient_norm = distributed.update(engine, learning_rate=learning_rate, ids=ids)
    return {
        "rgrpo/updated": 1.0,
        "rgrpo/gradient_norm": gradient_norm,
        "rgrpo/learning_rate": learning_rate,
        **metrics,
        **watched,
    }


def accumulate_gradient(
    engine: DeepSpeedEngine,
    samples: Sequence[Sample],
    *,
    spare: Encoded,
    totals: Totals,
    config: RGRPOConfig,
    reference: Policy | None = None,
) -> dict[str, float] | None:
    """Add the gradient of the loss over all ranks' samples; None when no rank has any.

    ``spare`` is any sequence: a rank with fewer micro-batches than another passes it through with a gradient
    of zero. Raises what :func:`update_policy` does.
    """
    sizes = [sample.continuation for sample in samples]
    packed = distributed.in_lockstep(pack_groups(sizes, max_tokens=config.tokens_per_micro_batch))
    if not packed:
        return None
    seen = _Seen()
    rows: list[range] = []  # of each micro-batch, among those that were seen
    for number, micro_batch in enumerate(packed, start=1):
        chosen = [samples[index] for index in micro_batch or ()]
        first = rows[-1].stop if rows else 0
        rows.append(range(first, first + len(chosen)))
        loss = _micro_batch_loss(
            engine, chosen, spare, totals=totals, config=config, reference=reference, seen=seen
        )
        distributed.accumulate(engine, loss, is_last=number == len(packed))
    broken = engine.module.gradients.take(rows, rows[-1].stop)
    return seen.metrics(config, broken)


def _micro_batch_loss(
    engine: DeepSpeedEngine,
    samples: Sequence[Sample],
    spare: Encoded,
    *,
    totals: Totals,
    config: RGRPOConfig,
    reference: Policy | None,
    seen: "_Seen",
) -> Tensor:
    """This micro-batch's share of the global loss (scalar)."""
    batch = collate_packed([sample.encoded for sample in samples] or [spare], engine.module)
    logprobs = by_sample(engine(batch, temperature=config.temperature), batch)  # (B, T), of what is their own
    if not samples:
        return logprobs.sum() * 0.0
    sampled, engine_logprobs = (
        by_sample(row[:, 1:], batch) for row in (batch.sampled, batch.engine_logprobs)
    )
    engine_weight, is_cut = _engine_weight(logprobs, engine_logprobs, config)
    result = policy_loss(
        logprobs,
        old_logprobs=engine_logprobs if config.overlap else logprobs.detach(),
        advantages=torch.tensor([sample.advantage for sample in samples], device=logprobs.device),
        sampled=sampled,
        totals=totals,
        config=config.objective,
        engine_weight=engine_weight,
        reference_logprobs=_reference_logprobs(reference, batch, config),
    )
    seen.add([sample.id for sample in samples], logprobs.detach(), engine_logprobs, sampled, result)
    if is_cut is not None:
        seen.add_cut(is_cut & sampled)
    return result.loss


def _engine_weight(
    logprobs: Tensor, engine_logprobs: Tensor, config: RGRPOConfig
) -> tuple[Tensor | None, Tensor | None]:
    """What a token's loss is multiplied by so that its weight engine to trainer is at most the cap, and where
    it is cut; (B, T) each, None without a cap. With overlap the weight is in the ratio already."""
    cap = config.objective.engine_weight_cap
    if not cap:
        return None, None
    if config.overlap:
        weight = truncation(logprobs, engine_logprobs, cap=cap)
        return weight, weight < 1
    weight = truncated_weight(logprobs, engine_logprobs, cap=cap)
    return weight, weight >= cap


def _reference_logprobs(reference: Policy | None, batch: Batch, config: RGRPOConfig) -> Tensor | None:
    """(B, T), at the policy's temperature and with its bans, else the two would differ from the start."""
    if reference is None:
        return None
    with torch.no_grad():
        return by_sample(reference(batch, temperature=config.temperature), batch)


@torch.no_grad()
def score_again(
    engine: DeepSpeedEngine, encoded: Sequence[Encoded], config: RGRPOConfig, *, spare: Encoded | None = None
) -> list[np.ndarray]:
    """The policy's log-probs of each sequence's sampled tokens, (N,) nats each; all ranks call it.

    By the way that an update takes. Every sequence has sampled tokens; a rank without any needs a ``spare``.
    """
    samples = [Sample(str(number), 0, one, 0.0) for number, one in enumerate(encoded)]
    sizes = [sample.continuation for sample in samples]
    found: dict[int, np.ndarray] = {}
    for chosen in distributed.in_lockstep(pack_groups(sizes, max_tokens=config.tokens_per_micro_batch)):
        rows = [encoded[index] for index in chosen or ()] or [one for one in (spare,) if one is not None]
        batch = collate_packed(rows, engine.module)
        logprobs = by_sample(engine(batch, temperature=config.temperature), batch)
        sampled = by_sample(batch.sampled[:, 1:], batch)
        for row, index in enumerate(chosen or ()):
            found[index] = logprobs[row][sampled[row]].cpu().numpy()
    return [found[index] for index in range(len(encoded))]


def learning_rate(config: RGRPOConfig, step: int) -> float:
    """The rate of update ``step``, from 0."""
    return warmup_then_cosine(
        (step + 1) / config.num_steps,
        peak=config.learning_rate,
        warmup=min(1.0, config.warmup_steps / config.num_steps),
        min_ratio=config.min_lr_ratio,
    )


class _Seen:
    """What the forward passes of one update showed."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._likelihoods: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._mismatches: list[Tensor] = []
        self._highest: list[Tensor] = []
        self._lowest: list[Tensor] = []
        self._ratios: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._num_tokens: list[Tensor] = []
        self._num_clipped: list[Tensor] = []
        self._num_cut: list[Tensor] = []
        self._reference_kls: list[Tensor] = []

    def add(
        self,
        ids: list[str],
        logprobs: Tensor,
        engine_logprobs: Tensor,
        sampled: Tensor,
        result: PolicyLoss,
    ) -> None:
        """Note one micro-batch; the tensors are (B, T). Nothing is moved off the device yet."""
        self._ids += ids
        self._likelihoods.append(logprobs.sum(dim=1))
        self._losses.append(result.loss.detach())
        self._mismatches.append(mismatch_k3(logprobs, engine_logprobs, sampled))
        gaps = logprobs - engine_logprobs
        self._highest.append(torch.where(sampled, gaps, -torch.inf).max())
        self._lowest.append(torch.where(sampled, gaps, torch.inf).min())
        ratio = torch.where(sampled, gaps, -torch.inf).exp()  # 0 where not sampled
        self._ratios.append(ratio.sum())
        self._squares.append(ratio.square().sum())
        self._num_tokens.append(sampled.sum())
        self._num_clipped.append(result.num_clipped)
        if result.reference_kl is not None:
            self._reference_kls.append(result.reference_kl)

    def add_cut(self, is_cut: Tensor) -> None:
        """Note which tokens' engine weight was cut at its cap, (B, T)."""
        self._num_cut.append(is_cut.sum())

    def metrics(self, config: RGRPOConfig, broken: Tensor) -> dict[str, float]:
        """Sums over all ranks. Raises TrainingError or GuardError when the update must not happen.

        ``broken`` (N,) is NaN for a sample whose gradient is not finite.
        """
        likelihoods = torch.cat(self._likelihoods).cpu() if self._likelihoods else torch.zeros(0)
        distributed.require_finite(self._ids, likelihoods + broken, what="The log-likelihood or its gradient")
        counted = (self._losses, self._mismatches, self._num_tokens, self._num_clipped, self._num_cut)
        loss, mismatch, num_tokens, num_clipped, num_cut, ratio, squares = distributed.global_sums(
            [sum(map(float, values)) for values in (*counted, self._ratios, self._squares)]
        )
        highest = distributed.global_max(max(map(float, self._highest), default=-np.inf))
        lowest = -distributed.global_max(-min(map(float, self._lowest), default=np.inf))
        kl, name = mismatch / max(num_tokens, 1.0), "stale" if config.overlap else "mismatch"
        if not config.overlap:
            require_agreement(kl, limit=config.max_mismatch_kl)
        return {
            "rgrpo/loss": loss,
            f"rgrpo/{name}_kl": kl,
            f"rgrpo/{name}_max": max(highest, -lowest),
            "rgrpo/engine_ratio": ratio / max(num_tokens, 1.0),
            "rgrpo/engine_ratio_min": float(np.exp(lowest)),
            "rgrpo/engine_ratio_max": float(np.exp(highest)),
            "rgrpo/effective_share": ratio**2 / max(num_tokens * squares, 1e-12),
            "rgrpo/trained_tokens": num_tokens,
            "rgrpo/clipped_share": num_clipped / max(num_tokens, 1.0),
            "rgrpo/engine_weight_cut_share": num_cut / max(num_tokens, 1.0),
            **(self._reference_kl(num_tokens) if config.objective.beta else {}),
        }

    def _reference_kl(self, num_tokens: float) -> dict[str, float]:
        kls = torch.cat(self._reference_kls) if self._reference_kls else torch.zeros(0)
        distributed.require_finite(self._ids, kls, what="The KL to the reference")
        (total,) = distributed.global_sums([kls.sum()])
        return {"rgrpo/reference_kl": total / max(num_tokens, 1.0)}
