"""The one number of a benchmark that tables print, with its interval.

For five benchmarks it is the mean of the scorer's headline field, in percent. Two print something that is no
mean over rows: MME a sum of points over categories, HallusionBench the mean of three accuracies. Their
intervals come from a bootstrap over what belongs together: the two questions about a picture within their
category (MME), the questions of one set of figures (HallusionBench).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.benchmarks.hallusionbench import accuracies, figure_key, has_image, question_key, set_key
from models.benchmarks.mme import category_points
from models.benchmarks.scorer import Row, Scorer
from models.errors import ScoringError
from models.evaluation.metrics import NUM_RESAMPLES
from models.evaluation.results import Estimate

# One row and whether it is right.
Judged = tuple[Row, float]


def table_number(
    scorer: Scorer, headline: Estimate, judged: Sequence[tuple[Row, float]], *, seed: int
) -> Estimate:
    """The number as tables print it: MME in points (at most 2800), all others in percent.

    ``judged`` are the scored rows with what their answer is worth. Raises ScoringError when MME has half a
    pair or HallusionBench no row with a picture: the number then has no meaning.
    """
    if scorer.name == "mme":
        return _mme(judged, seed=seed)
    if scorer.name == "hallusionbench":
        return _hallusionbench([each for each in judged if has_image(each[0])], seed=seed)
    return Estimate(value=100 * headline.value, low=100 * headline.low, high=100 * headline.high)


def _mme(judged: Sequence[Judged], *, seed: int) -> Estimate:
    """Perception + cognition. A picture is worth its share of right answers, and 1 more when both are."""
    value = sum(category_points([row for row, _ in judged], [right for _, right in judged]).values())
    worth: dict[str, dict[str, list[float]]] = {}
    for row, right in judged:
        worth.setdefault(row["category"], {}).setdefault(row["question_id"], []).append(right)
    rng = np.random.default_rng(seed)
    totals = np.zeros(NUM_RESAMPLES)
    for pictures in worth.values():
        points = 100 * np.array([sum(pair) / 2 + float(all(pair)) for pair in pictures.values()])
        totals += _resampled(len(points), rng) @ points / len(points)
    return _estimate(value, totals)


def _hallusionbench(judged: Sequence[Judged], *, seed: int) -> Estimate:
    """The mean of aAcc, fAcc and qAcc. Every figure and every question lies within one set of figures."""
    if not judged:
        raise ScoringError("No row of HallusionBench with a picture was scored, so there is no table number.")
    found = accuracies([(row, right == 1.0) for row, right in judged])
    value = sum(number or 0.0 for number in found.values()) / len(found)
    sets: dict[str, list[Judged]] = {}
    for each in judged:
        sets.setdefault(set_key(each[0]), []).append(each)
    draws = _resampled(len(sets), np.random.default_rng(seed))
    shares = []
    for key in (id, figure_key, question_key):
        counts = np.array([_right_and_all(each, key) for each in sets.values()], dtype=np.float64)
        right, total = (draws @ counts).T
        shares.append(100 * right / total)
    return _estimate(value, np.mean(shares, axis=0))


def _right_and_all(judged: Sequence[Judged], key: Callable[[Row], object]) -> tuple[int, int]:
    """How many groups of rows are wholly right, and how many there are."""
    groups: dict[object, bool] = {}
    for row, right in judged:
        groups[key(row)] = groups.get(key(row), True) and right == 1.0
    return sum(groups.values()), len(groups)


def _resampled(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each of ``number`` things is drawn in each resample: (resamples, number)."""
    return rng.multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLES)


def _estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))
