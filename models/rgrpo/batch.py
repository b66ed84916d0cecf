"""From finished trajectories to what the update trains on: rewards, advantages, and which ones count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models import distributed
from models.config import Look, RGRPOConfig
from models.encoding import Encoded, Encoder
from models.errors import EncodingError
from models.records import Question
from models.rgrpo.advantages import group_advantages
from models.rgrpo.objective import Totals
from models.rgrpo.outcomes import Outcome, batch_metrics, outcomes_of
from models.rgrpo.rewards import score
from models.rgrpo.update import Sample
from models.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """A scored trajectory and its advantage (NaN: unscored); ``is_trained`` when its gradient is not zero.

    ``encoded`` is None where the engine sampled what cannot be a sequence of this model.
    """

    trajectory: Trajectory
    kind: str
    advantage: float
    is_trained: bool
    encoded: Encoded | None


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rollouts on this rank, in group order; ``outcomes``, ``totals`` and ``metrics`` are those of
    all ranks.

    ``spare`` is some sequence of this rank, trained on or not; ``has_samples`` whether any rank has
    ``samples``.
    """

    rollouts: tuple[Rollout, ...]
    outcomes: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    has_samples: bool
    spare: Encoded
    totals: Totals
    metrics: dict[str, float]


def score_and_compare(
    trajectories: Sequence[Trajectory],
    questions: Sequence[Question],
    config: RGRPOConfig,
    *,
    encoder: Encoder,
    look: Look,
) -> Batch:
    """Score this rank's trajectories (``group_size`` per question, in order) and compare them within groups.

    ``seq-mean-token-sum-norm`` divides by the constant ``look.max_sampled_tokens``. Those that we broke have
    no reward, and those that cannot be encoded are not trained on; whether that is allowed is for the caller
    to ask, once they are on disk (:func:`models.rgrpo.outcomes.check_failures`).
    """
    asked = [question for question in questions for _ in range(config.group_size)]
    scored = [
        _scored(trajectory, question, config)
        for trajectory, question in zip(trajectories, asked, strict=True)
    ]
    sequences = [encoded_or_why_not(trajectory, encoder) for trajectory in scored]
    faults = [str(found) if isinstance(found, EncodingError) else "" for found in sequences]
    outcomes = outcomes_of(scored, asked, look=look, encoder=encoder, faults=faults)
    ranks = distributed.from_all_ranks(outcomes)
    everywhere = [outcome for share in ranks for outcome in share]
    advantages = group_advantages(
        [None if outcome.reward is None else outcome.reward.total for outcome in everywhere],
        group_size=config.group_size,
        scale=config.objective.advantage_scale,
        eps=config.objective.advantage_eps,
    )
    before = sum(map(len, ranks[: distributed.rank()]))
    mine = advantages.values[before : before + len(scored)]
    rollouts = tuple(
        Rollout(
            trajectory=trajectory,
            kind=outcome.kind,
            advantage=float(advantage),
            is_trained=_has_gradient(outcome, float(advantage), config),
            encoded=None if isinstance(encoded, EncodingError) else encoded,
        )
        for trajectory, outcome, advantage, encoded in zip(scored, outcomes, mine, sequences, strict=True)
    )
    return Batch(
        rollouts=rollouts,
        outcomes=tuple(everywhere),
        samples=tuple(_sample(one, one.encoded) for one in rollouts if one.encoded and one.is_trained),
        has_samples=any(
            _has_gradient(outcome, float(advantage), config)
            for outcome, advantage in zip(everywhere, advantages.values, strict=True)
        ),
        spare=_shortest(rollouts, encoder),
        totals=_totals(everywhere, config, max_tokens=look.max_sampled_tokens),
        metrics=batch_metrics(everywhere, advantages, group_size=config.group_size),
    )


def _scored(trajectory: Trajectory, question: Question, config: RGRPOConfig) -> Trajectory:
    reward = score(trajectory, question, config.reward)
    return trajectory if reward is None else trajectory.with_reward(reward)


def encoded_or_why_not(trajectory: Trajectory, encoder: Encoder) -> Encoded | EncodingError:
    """The sequence, or what is wrong with the ids that the engine sampled."""
    try:
        return encoder.encode(trajectory)
    except EncodingError as error:
        return error


def _shortest(rollouts: Sequence[Rollout], encoder: Encoder) -> Encoded:
    """Some sequence, be it only what a question asked."""
    found = [one.encoded for one in rollouts if one.encoded is not None]
    return min(found, key=len) if found else encoder.encode(replace(rollouts[0].trajectory, spans=()))


def _has_gradient(outcome: Outcome, advantage: float, config: RGRPOConfig) -> bool:
    """A group of equal rewards gives none by its advantages; the KL to a reference gives one to all."""
    return _counts(outcome, config) and (advantage != 0 or config.objective.beta > 0)


def _counts(outcome: Outcome, config: RGRPOConfig) -> bool:
    """Whether a trajectory takes part in the loss; one that does not is in no divisor either."""
    masked = config.objective.mask_truncated and outcome.stop.is_truncated
    return outcome.reward is not None and outcome.num_tokens > 0 and not outcome.fault and not masked


def _totals(outcomes: Sequence[Outcome], config: RGRPOConfig, *, max_tokens: int) -> Totals:
    """The divisors. Groups of equal rewards count, so that leaving them out of the forward pass is exact."""
    counted = [_counts(outcome, config) for outcome in outcomes]
    size = config.group_size
    return Totals(
        num_questions=sum(any(counted[start : start + size]) for start in range(0, len(counted), size)),
        num_trajectories=sum(counted),
        num_tokens=sum(
            outcome.num_tokens for outcome, counts in zip(outcomes, counted, strict=True) if counts
        ),
        max_tokens=max_tokens,
    )


def _sample(rollout: Rollout, encoded: Encoded) -> Sample:
    trajectory = rollout.trajectory
    return Sample(trajectory.question_id, trajectory.sample_index, encoded, rollout.advantage)
