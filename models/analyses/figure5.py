"""Figure 5 of the paper (4.5.2): does the attention on what is seen fade as the answer grows?

Three chains about the same questions, of the same model, and how its attention is shared out at every token
that it writes:

- *interleaved*: it looks again and reads the crops, as trained;
- *text only*: its crop commands are answered with nothing, so it goes on in text (variant ``no_crop``);
- *same text, no crops*: the text of the interleaved chain with the crops taken out. Every word is the same,
  so what differs is only what there is to look at.

The paper compares one question, with another model for the text chain. Only questions at which the model
looked are averaged, because the others have one chain, not two.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.analyses import tables
from models.analyses.attention import CROP, IMAGE, PARTS, attention_shares
from models.config import Look
from models.engine import Engine
from models.errors import ScoringError
from models.evaluation.results import Frozen
from models.evaluation.variants import get_variant
from models.policy import Policy
from models.rollout import Asked, rollout
from models.trajectory import CropSpan, Trajectory

CHAINS = ("interleaved", "text only", "same text, no crops")
# What is drawn: the parts of a sequence, and both kinds of visual token together.
SEEN = "image and crops"
NUM_BINS = 20
NUM_RESAMPLES = 2000
# A position is shown as long as this share of the answers is that long.
_MIN_SHARE_OF_ANSWERS = 0.2

Axis = Literal["relative", "absolute"]


@dataclass(frozen=True, slots=True)
class Chain:
    """One answer: the shares (tokens, 4) of attention on ``PARTS`` at each token that the model wrote."""

    name: str
    question_id: str
    shares: NDArray[np.float64]


class CurvePoint(Frozen):
    """Mean share of attention at one place of the answers, with its bootstrap 95 % interval over questions.

    ``position`` is the share of the answer that is written (0 to 1, middle of a bin), or the number of tokens
    written before.
    """

    chain: str
    axis: Axis
    position: float
    part: str
    share: float
    low: float
    high: float
    num_answers: int


def roll_out(engine: Engine, questions: Sequence[Asked], look: Look) -> dict[str, list[Trajectory]]:
    """Greedy chains of every question at which the model looked, by chain.

    Raises ScoringError when it looked at none.
    """
    interleaved = rollout(engine, questions, look=look)
    looked = [one for one in interleaved if one.crops and not one.is_our_failure]
    if not looked:
        raise ScoringError(
            f"The model asked for no crop in {len(questions)} questions, so no chain is interleaved. Give a "
            "model that looks again (--model); `vlm-r3 rgrpo` trains one."
        )
    wanted = {one.question_id for one in looked}
    text_only = rollout(
        engine,
        [question for question in questions if question.id in wanted],
        look=get_variant("no_crop").look(look),
    )
    answered = [one for one in text_only if not one.is_our_failure]
    return dict(zip(CHAINS, (looked, answered, [without_crops(one) for one in looked]), strict=True))


def without_crops(trajectory: Trajectory) -> Trajectory:
    """The same text, nothing shown in between."""
    return replace(
        trajectory, spans=tuple(span for span in trajectory.spans if not isinstance(span, CropSpan))
    )


def measure(policy: Policy, trajectories: Mapping[str, Sequence[Trajectory]]) -> Iterator[Chain]:
    """The chains one by one, each a forward pass."""
    for name, ones in trajectories.items():
        for one in ones:
            if one.num_sampled_tokens:
                yield Chain(name, one.question_id, attention_shares(policy, one))


def curves(chains: Sequence[Chain], *, seed: int) -> list[CurvePoint]:
    """Every curve of every chain, against the relative and the absolute position in the answer."""
    points: list[CurvePoint] = []
    for name in dict.fromkeys(chain.name for chain in chains):
        shares = [chain.shares for chain in chains if chain.name == name]
        points += _curve(name, "relative", _by_share(shares), seed=seed)
        points += _curve(name, "absolute", _by_token(shares), seed=seed)
    return points


def curves_csv(points: Sequence[CurvePoint]) -> str:
    """One line per point."""
    return tables.to_csv(point.model_dump() for point in points)


def tokens_csv(chains: Sequence[Chain]) -> str:
    """One line per token of every answer: what the curves are the mean of."""
    return tables.to_csv(
        {"chain": chain.name, "question": chain.question_id, "token": index, "tokens": len(chain.shares)}
        | dict(zip(PARTS, row.tolist(), strict=True))
        for chain in chains
        for index, row in enumerate(chain.shares)
    )


def to_text(points: Sequence[CurvePoint]) -> str:
    """The share of attention on pictures in each quarter of the answers, for a terminal."""
    lines = [f"{'attention on image and crops, %':38}" + "".join(f"{name:>12}" for name in _QUARTERS)]
    for chain in dict.fromkeys(point.chain for point in points):
        for part in (SEEN, "image", "crop"):
            found = [
                point
                for point in points
                if (point.chain, point.axis, point.part) == (chain, "relative", part)
            ]
            quarters = [
                [point.share for point in found if low <= point.position < low + 0.25]
                for low in (0, 0.25, 0.5, 0.75)
            ]
            means = "".join(f"{100 * np.mean(one):12.1f}" if one else f"{'-':>12}" for one in quarters)
            lines.append(f"{f'{chain}: {part}':38}{means}")
    return "\n".join(lines) + "\n"


_QUARTERS = ("1st quarter", "2nd", "3rd", "last")


def _by_share(answers: Sequence[NDArray[np.float64]]) -> tuple[list[float], NDArray[np.float64]]:
    """Means within bins of the answer: positions, and shares (answers, bins, parts), NaN for an empty bin."""
    found = np.full((len(answers), NUM_BINS, len(PARTS)), np.nan)
    for row, shares in enumerate(answers):
        bins = ((np.arange(len(shares)) + 0.5) / len(shares) * NUM_BINS).astype(int)
        for place in np.unique(bins):
            found[row, place] = shares[bins == place].mean(axis=0)
    return [(place + 0.5) / NUM_BINS for place in range(NUM_BINS)], found


def _by_token(answers: Sequence[NDArray[np.float64]]) -> tuple[list[float], NDArray[np.float64]]:
    """Token by token, as far as enough answers go; NaN after the end of one."""
    lengths = sorted((len(shares) for shares in answers), reverse=True)
    num_shown = lengths[math.ceil(_MIN_SHARE_OF_ANSWERS * len(answers)) - 1]
    found = np.full((len(answers), num_shown, len(PARTS)), np.nan)
    for row, shares in enumerate(answers):
        found[row, : len(shares)] = shares[:num_shown]
    return [float(place) for place in range(num_shown)], found


def _curve(
    chain: str, axis: Axis, binned: tuple[list[float], NDArray[np.float64]], *, seed: int
) -> Iterator[CurvePoint]:
    positions, shares = binned
    seen = shares[:, :, [IMAGE, CROP]].sum(axis=2)
    for part, values in [*((PARTS[index], shares[:, :, index]) for index in range(len(PARTS))), (SEEN, seen)]:
        means, lows, highs = _bands(values, seed=seed)
        counts = np.isfinite(values).sum(axis=0)
        for place, position in enumerate(positions):
            if counts[place]:
                yield CurvePoint(
                    chain=chain,
                    axis=axis,
                    position=position,
                    part=part,
                    share=float(means[place]),
                    low=float(lows[place]),
                    high=float(highs[place]),
                    num_answers=int(counts[place]),
                )


def _bands(
    values: NDArray[np.float64], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Column means of (answers, places) without NaN, and their percentile bootstrap interval over answers."""
    is_known = np.isfinite(values).astype(float)
    known = np.nan_to_num(values)
    num_answers = len(values)
    counts = np.random.default_rng(seed).multinomial(
        num_answers, np.full(num_answers, 1 / num_answers), size=NUM_RESAMPLES
    )
    with np.errstate(invalid="ignore"):
        resampled = (counts @ known) / (counts @ is_known)  # (resamples, places)
        means = known.sum(axis=0) / is_known.sum(axis=0)
        # A resample without any answer of that length says nothing.
        has_any = np.isfinite(resampled).any(axis=0)
        ends = np.full((2, values.shape[1]), np.nan)
        ends[:, has_any] = np.nanpercentile(resampled[:, has_any], [2.5, 97.5], axis=0)
    return means, ends[0], ends[1]
