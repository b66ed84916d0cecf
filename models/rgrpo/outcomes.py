"""What a step's rollouts came to: metrics of the whole batch, and the guards that stop a run.

Nothing here is fixed in silence. Every way in which a batch can be worth less than it looks is counted, and
the one that is our own fault, trajectories that we broke, has a limit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from models.config import Look, RGRPOConfig
from models.errors import EncodingError, TrainingError
from models.records import Question
from models.region import Box, Size, View, won_by_rounding
from models.rgrpo.advantages import Advantages
from models.rgrpo.rewards import differ_in_length_only
from models.rundir import metric_part
from models.trajectory import Reward, SampledSpan, StopReason, Trajectory

if TYPE_CHECKING:
    from models.encoding import Encoder


@dataclass(frozen=True, slots=True)
class Outcome:
    """The numbers of one scored trajectory, small enough to send to every rank. ``reward`` is None when we
    broke; ``log_likelihood`` sums the engine's log-probs of the sampled tokens, nats; ``box_shares`` are the
    accepted boxes' shares of their pictures, ``box_overlaps`` their IoU with the one before, 0 to 1,
    ``box_roundings`` how many times more pixels their crops have than Eq. 4 gives them;
    ``drifted`` says of every sampled span whether its text would be tokenised otherwise; ``fault`` why the
    trajectory cannot be encoded."""

    kind: str
    stop: StopReason
    reward: Reward | None
    num_crops: int
    num_errors: int
    num_tokens: int
    log_likelihood: float
    box_shares: tuple[float, ...] = ()
    box_overlaps: tuple[float, ...] = ()
    box_roundings: tuple[float, ...] = ()
    drifted: tuple[bool, ...] = ()
    detail: str = ""
    fault: str = ""

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        question: Question,
        *,
        look: Look,
        drifted: Iterable[bool] = (),
        fault: str = "",
    ) -> "Outcome":
        """The outcome of a trajectory that has been scored."""
        spans = _sampled(trajectory)
        return cls(
            kind=question.kind,
            stop=trajectory.stop,
            reward=trajectory.reward,
            num_crops=len(trajectory.crops),
            num_errors=len(trajectory.errors),
            num_tokens=trajectory.num_sampled_tokens,
            log_likelihood=sum(sum(span.logprobs or ()) for span in spans),
            box_shares=_box_shares(trajectory),
            box_overlaps=_box_overlaps(trajectory),
            box_roundings=_box_roundings(trajectory, question, look),
            drifted=tuple(drifted),
            detail=trajectory.detail,
            fault=fault,
        )


def outcomes_of(
    trajectories: Sequence[Trajectory],
    questions: Sequence[Question],
    *,
    look: Look,
    encoder: "Encoder",
    faults: Sequence[str],
) -> list[Outcome]:
    """The outcomes of trajectories that have been scored, of the question and of the encoding of each."""
    spans = [_sampled(trajectory) for trajectory in trajectories]
    # All in one call: the tokenizer takes half the time of one call each.
    drifted = iter(encoder.drifts([span.token_ids or () for of_one in spans for span in of_one]))
    return [
        Outcome.of(trajectory, question, look=look, drifted=islice(drifted, len(of_one)), fault=fault)
        for trajectory, question, of_one, fault in zip(trajectories, questions, spans, faults, strict=True)
    ]


def _sampled(trajectory: Trajectory) -> list[SampledSpan]:
    return [span for span in trajectory.spans if isinstance(span, SampledSpan)]


def check_failures(outcomes: Sequence[Outcome], config: RGRPOConfig) -> None:
    """Raise TrainingError when we broke more than ``max_failed_share`` of the trajectories, EncodingError
    when one of the others is no sequence of this model: the engine is not what it says then."""
    failed = [outcome for outcome in outcomes if outcome.reward is None]
    if len(failed) > config.max_failed_share * len(outcomes):
        raise TrainingError(
            f"{len(failed)} of {len(outcomes)} trajectories failed on our side; at most a share of "
            f"{config.max_failed_share} may. No reward was given and nothing was trained. The first: "
            f"{failed[0].stop}, {failed[0].detail or 'no detail'}. Look into the engine's log."
        )
    if faults := unencodable(outcomes):
        raise EncodingError(
            f"{len(faults)} of {len(outcomes)} trajectories cannot be trained on. Nothing was trained. The "
            f"first: {faults[0]}"
        )


def unencodable(outcomes: Sequence[Outcome]) -> list[str]:
    """What is wrong with the trajectories that earned a reward and are no sequence of this model."""
    return [outcome.fault for outcome in outcomes if outcome.fault and outcome.reward is not None]


def batch_metrics(
    outcomes: Sequence[Outcome], advantages: Advantages, *, group_size: int
) -> dict[str, float]:
    """Metrics over the trajectories of all ranks, in group order. Shares are 0 to 1; see docs/metrics.md."""
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    num_tokens = max(sum(outcome.num_tokens for outcome in outcomes), 1)
    groups = [outcomes[start : start + group_size] for start in range(0, len(outcomes), group_size)]
    moving = [group for group, has_spread in zip(groups, advantages.has_spread, strict=True) if has_spread]
    return {
        "rgrpo/reward": _mean([reward.total for reward in rewards]),
        "rgrpo/reward/accuracy": _mean([reward.accuracy for reward in rewards]),
        "rgrpo/reward/format": _mean([reward.format for reward in rewards]),
        "rgrpo/reward/validity": _mean([reward.validity for reward in rewards]),
        "rgrpo/reward/length": _mean([reward.length for reward in rewards]),
        **_accuracy_by_kind(outcomes),
        "rgrpo/unscored_share": 1 - len(rewards) / len(outcomes),
        "rgrpo/zero_variance_share": 1 - len(moving) / len(groups),
        "rgrpo/all_wrong_share": sum(map(_is_all_wrong, moving)) / len(groups),
        **({"rgrpo/all_wrong_moving_share": _mean(list(map(_is_all_wrong, moving)))} if moving else {}),
        "rgrpo/length_only_share": sum(map(_differs_in_length_only, moving)) / len(groups),
        "rgrpo/crops_per_trajectory": _mean([outcome.num_crops for outcome in outcomes]),
        "rgrpo/errors_per_trajectory": _mean([outcome.num_errors for outcome in outcomes]),
        **_mean_of_boxes("rgrpo/box_share", [outcome.box_shares for outcome in outcomes]),
        **_mean_of_boxes("rgrpo/box_rounding", [outcome.box_roundings for outcome in outcomes]),
        **_mean_of_boxes("rgrpo/box_overlap", [outcome.box_overlaps for outcome in outcomes]),
        "rgrpo/tokens_per_trajectory": _mean([outcome.num_tokens for outcome in outcomes]),
        "rgrpo/truncated_share": _mean([outcome.stop.is_truncated for outcome in outcomes]),
        "rgrpo/retokenisation_drift": _mean([one for outcome in outcomes for one in outcome.drifted]),
        # Minus the mean log-prob of what was sampled estimates the entropy per token without bias.
        "rgrpo/entropy": -sum(outcome.log_likelihood for outcome in outcomes) / num_tokens,
    }


def _box_shares(trajectory: Trajectory) -> tuple[float, ...]:
    pictures = trajectory.prompt.pictures
    return tuple(
        event.box.area / pictures[event.image - 1].size.area
        for event in trajectory.events
        if event.box is not None and event.error is None
    )


def _box_roundings(trajectory: Trajectory, question: Question, look: Look) -> tuple[float, ...]:
    """A question has one picture here."""
    view = View.of(Size(question.width, question.height), look.budget)
    return tuple(won_by_rounding(box, view, look.budget) for box in trajectory.accepted_boxes)


def _box_overlaps(trajectory: Trajectory) -> tuple[float, ...]:
    """The IoU of every accepted box with the accepted one before it of the same picture."""
    last: dict[int, Box] = {}
    found = []
    for event in trajectory.events:
        if event.box is None or event.error is not None:
            continue
        if event.image in last:
            found.append(event.box.iou(last[event.image]))
        last[event.image] = event.box
    return tuple(found)


def _mean_of_boxes(name: str, values: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Nothing for a batch without such boxes: a mean of nothing is no number."""
    everywhere = [value for each in values for value in each]
    return {name: _mean(everywhere)} if everywhere else {}


def _accuracy_by_kind(outcomes: Sequence[Outcome]) -> dict[str, float]:
    correct: dict[str, list[bool]] = {}
    for outcome in outcomes:
        if outcome.reward is not None and outcome.kind:
            correct.setdefault(outcome.kind, []).append(outcome.reward.accuracy > 0)
    return {f"rgrpo/correct/{metric_part(kind)}": _mean(found) for kind, found in sorted(correct.items())}


def _is_all_wrong(group: Sequence[Outcome]) -> bool:
    """Nobody answered correctly, yet the group has a gradient: it teaches form, not sight."""
    return not any(outcome.reward is not None and outcome.reward.accuracy > 0 for outcome in group)


def _differs_in_length_only(group: Sequence[Outcome]) -> bool:
    """Equal but for the length reward, which Eq. 1 then blows up to a full-size advantage."""
    return differ_in_length_only([outcome.reward for outcome in group if outcome.reward is not None])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
