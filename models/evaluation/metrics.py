"""The numbers of an evaluation, from scored predictions: accuracy, grounding, and differences with intervals.

Our own failures are counted beside every number and shrink no denominator silently: see
:func:`check_unscored`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np

from models.errors import ScoringError
from models.evaluation.predictions import Prediction
from models.evaluation.results import Comparison, Estimate, SampledScores, Scores

# Normal quantile of a two-sided 95 % interval.
Z_95 = 1.959963984540054
# The first box looks at the asked object when its IoU with a gold box exceeds this. Low on purpose: a
# generous box around a small object has an IoU of 0.2 to 0.3 with it, the whole picture less than 0.01.
ON_OBJECT_IOU = 0.1
# A gold box is found when an accepted box has this IoU with it.
FOUND_IOU = 0.5
# A crop holds a gold box when so much of the box's area lies in it: rounding to whole pixels may cut an edge.
HOLDS_COVERAGE = 0.9
NUM_RESAMPLES = 10_000
# Indices held in memory at a time.
_DRAWS_PER_BLOCK = 2_000_000


def wilson_interval(num_correct: int, num_scored: int) -> Estimate:
    """A share with its Wilson 95 % interval, which stays within 0 and 1 and is right for few questions too.

    Raises ScoringError when nothing was scored: there is no accuracy then.
    """
    if not 0 <= num_correct <= num_scored or num_scored == 0:
        raise ScoringError(
            f"{num_correct} right of {num_scored} scored: a share needs at least one scored attempt."
        )
    share = num_correct / num_scored
    shrink = 1 + Z_95**2 / num_scored
    centre = (share + Z_95**2 / (2 * num_scored)) / shrink
    spread = math.sqrt(share * (1 - share) / num_scored + (Z_95 / (2 * num_scored)) ** 2) * Z_95 / shrink
    # At a share of 0 or 1 the end is exact; rounding must not put it beyond.
    return Estimate(
        value=share, low=max(0.0, min(share, centre - spread)), high=min(1.0, max(share, centre + spread))
    )


def bootstrap_mean(values: Sequence[float], *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """The mean with its percentile bootstrap 95 % interval. Raises ScoringError when there are no values."""
    if not values:
        raise ScoringError("A bootstrap needs at least one value; nothing was scored.")
    known = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    block = max(1, _DRAWS_PER_BLOCK // len(known))
    means = [
        known[rng.integers(len(known), size=(min(block, num_resamples - start), len(known)))].mean(axis=1)
        for start in range(0, num_resamples, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(value=fmean(values), low=float(low), high=float(high))


def paired_bootstrap(
    new: Mapping[str, float], old: Mapping[str, float], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[Estimate, int]:
    """The mean of new minus old over the questions that both scored, with its interval, and their number.

    ``new`` and ``old`` map a question id to its score. Raises ScoringError when no question is in both.
    """
    shared = sorted(new.keys() & old.keys())
    if not shared:
        raise ScoringError(
            "No question was scored in both rows, so they cannot be compared. Use the same questions."
        )
    differences = [new[id] - old[id] for id in shared]
    return bootstrap_mean(differences, seed=seed, num_resamples=num_resamples), len(shared)


def compare(
    new: tuple[str, Sequence[Prediction]], old: tuple[str, Sequence[Prediction]], *, kind: str = "", seed: int
) -> Comparison:
    """Greedy accuracy of one row minus another's, on the questions that both were asked.

    A row is given as (name, predictions). ``kind`` restricts the comparison to one kind of question.
    """
    rows = [_greedy(predictions, kind) for _, predictions in (new, old)]
    asked = {p.question_id for p in rows[0]} & {p.question_id for p in rows[1]}
    scored = [{p.question_id: float(p.correct) for p in row if p.correct is not None} for row in rows]
    difference, num_questions = paired_bootstrap(scored[0], scored[1], seed=seed)
    return Comparison(
        new=new[0],
        old=old[0],
        kind=kind,
        difference=difference,
        num_questions=num_questions,
        num_unscored=len(asked) - num_questions,
    )


def summarise(predictions: Sequence[Prediction], *, pixel_factor: int) -> Scores:
    """Greedy predictions summed up. ``pixel_factor`` is the side in pixels of one picture token.

    The rates that speak about looking are over the questions with a gold box: an attempt without a box counts
    as not on the object there, and is left out of mean IoU and coverage.
    """
    scored = [p for p in predictions if p.is_scored]
    num_correct = sum(p.correct is True for p in scored)
    looks = [p for p in scored if p.needs_look and p.style == "look-again"]
    crops = [crop for p in scored for crop in p.transcript.crops]
    return Scores(
        num_scored=len(scored),
        num_unscored=len(predictions) - len(scored),
        num_correct=num_correct,
        accuracy=wilson_interval(num_correct, len(scored)),
        format_rate=_format_rate(scored),
        protocol_error_rate=_share(scored, lambda p: bool(p.transcript.errors)),
        truncation_rate=_share(scored, lambda p: p.transcript.stop.is_truncated),
        crops_per_question=len(crops) / len(scored),
        look_rate=_share(looks, lambda p: p.first_box_iou is not None) if looks else None,
        first_box_on_object=_share(looks, lambda p: (p.first_box_iou or 0.0) > ON_OBJECT_IOU)
        if looks
        else None,
        first_box_iou=_mean(p.first_box_iou for p in looks),
        first_box_coverage=_mean(p.first_box_coverage for p in looks),
        gold_recall=_mean(float(iou >= FOUND_IOU) for p in looks for iou in p.gold_ious),
        crops_with_answer=_mean(float(part >= HOLDS_COVERAGE) for p in looks for part in p.crop_coverages),
        crop_width=_mean(crop.box.width for crop in crops),
        crop_height=_mean(crop.box.height for crop in crops),
        crop_tokens=_mean(crop.size.area / pixel_factor**2 for crop in crops),
        tokens_per_question=fmean(p.transcript.num_sampled_tokens for p in scored),
        seconds_per_question=fmean(p.seconds for p in scored),
    )


def summarise_samples(predictions: Sequence[Prediction], *, seed: int) -> SampledScores:
    """Mean@k: each question's share right among its scored samples, averaged over questions.

    The interval resamples questions, because samples of one question are not independent. Raises ScoringError
    when questions have different numbers of samples.
    """
    by_question: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_question.setdefault(prediction.question_id, []).append(prediction)
    sizes = {len(samples) for samples in by_question.values()}
    if len(sizes) != 1:
        raise ScoringError(
            f"mean@k needs the same number of samples for every question, found {sorted(sizes)}."
        )
    scored = [p for p in predictions if p.is_scored]
    shares = [
        fmean(float(p.correct) for p in samples if p.correct is not None)
        for samples in by_question.values()
        if any(p.is_scored for p in samples)
    ]
    return SampledScores(
        num_samples=sizes.pop(),
        num_questions=len(shares),
        num_unscored=len(predictions) - len(scored),
        mean=bootstrap_mean(shares, seed=seed),
        format_rate=_format_rate(scored),
    )


def check_unscored(name: str, predictions: Collection[Prediction], *, max_share: float) -> int:
    """How many attempts we broke. Raises ScoringError when their share exceeds ``max_share``."""
    broken = [p for p in predictions if not p.is_scored]
    if len(broken) > max_share * len(predictions):
        first = broken[0]
        raise ScoringError(
            f"Variant {name!r}: {len(broken)} of {len(predictions)} attempts failed on our side, above "
            f"evaluation.max_unscored_share {max_share}. Without them its accuracy is that of other "
            f"questions: see the engine's log. The first is {first.question_id!r}: {first.transcript.stop} "
            f"{first.transcript.detail}"
        )
    return len(broken)


def _greedy(predictions: Iterable[Prediction], kind: str) -> list[Prediction]:
    return [p for p in predictions if p.temperature == 0 and (not kind or p.kind == kind)]


def _format_rate(scored: Sequence[Prediction]) -> float | None:
    """None when nothing was asked for the format."""
    asked = [p for p in scored if p.style == "look-again"]
    return _share(asked, lambda p: p.is_well_formed) if asked else None


def _share(predictions: Sequence[Prediction], condition: Callable[[Prediction], bool]) -> float:
    return sum(map(condition, predictions)) / len(predictions)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
