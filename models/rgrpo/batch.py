"""From finished trajectories to what the update trains on: rewards, advantages, and which ones count."""

from collections.abc import Sequence
from dataclasses import dataclass

from models import distributed
from models.config import RGRPOConfig
from models.encoding import Encoded, Encoder
from models.records import Question
from models.rgrpo.advantages import group_advantages
from models.rgrpo.objective import Totals
from models.rgrpo.outcomes import Outcome, batch_metrics, outcomes_of
from models.rgrpo.rewards import score
from models.rgrpo.update import Sample
from models.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """A scored trajectory and its advantage (NaN: unscored); ``is_trained`` when its gradient is not zero."""

    trajectory: Trajectory
    kind: str
    advantage: float
    is_trained: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rollouts on this rank, in group order; ``outcomes``, ``totals`` and ``metrics`` are those of
    all ranks.

    ``spare`` is some sequence of this rank, trained on or not.
    """

    rollouts: tuple[Rollout, ...]
    outcomes: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    spare: Encoded
    totals: Totals
    metrics: dict[str, float]


def score_and_compare(
    trajectories: Sequence[Trajectory],
    questions: Sequence[Question],
    config: RGRPOConfig,
    *,
    encoder: Encoder,
    max_tokens: int,
) -> Batch:
    """Score this rank's trajectories (``group_size`` per question, in order) and compare them within groups.

    ``max_tokens`` is the constant that ``seq-mean-token-sum-norm`` divides by. Those that we broke have no
    reward; whether they are too many is for the caller to ask (:func:`models.rgrpo.outcomes.check_failures`).
    """
    asked = [question for question in questions for _ in range(config.group_size)]
    scored = [
        _scored(trajectory, question, config)
        for trajectory, question in zip(trajectories, asked, strict=True)
    ]
    outcomes = outcomes_of(scored, asked, encoder)
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
        Rollout(trajectory, outcome.kind, float(advantage), _has_gradient(outcome, float(advantage), config))
        for trajectory, outcome, advantage in zip(scored, outcomes, mine, strict=True)
    )
    return Batch(
        rollouts=rollouts,
        outcomes=tuple(everywhere),
        samples=tuple(_sample(rollout, encoder) for rollout in rollouts if rollout.is_trained),
        spare=encoder.encode(min(scored, key=lambda trajectory: trajectory.num_sampled_tokens)),
        totals=_totals(everywhere, config, max_tokens=max_tokens),
        metrics=batch_metrics(everywhere, advantages, group_size=config.group_size),
    )


def _scored(trajectory: Trajectory, question: Question, config: RGRPOConfig) -> Trajectory:
    reward = score(trajectory, question, config.reward)
    return trajectory if reward is None else trajectory.with_reward(reward)


def _has_gradient(outcome: Outcome, advantage: float, config: RGRPOConfig) -> bool:
    """A group of equal rewards gives none by its advantages; the KL to a reference gives one to all."""
    return _counts(outcome, config) and (advantage != 0 or config.objective.beta > 0)


def _counts(outcome: Outcome, config: RGRPOConfig) -> bool:
    """Whether a trajectory takes part in the loss; one that does not is in no divisor either."""
    masked = config.objective.mask_truncated and outcome.stop.is_truncated
    return outcome.reward is not None and outcome.num_tokens > 0 and not masked


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


def _sample(rollout: Rollout, encoder: Encoder) -> Sample:
    trajectory = rollout.trajectory
    return Sample(
        trajectory.question_id, trajectory.sample_index, encoder.encode(trajectory), rollout.advantage
    )
