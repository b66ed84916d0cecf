"""The one number of a benchmark that tables print, and its interval."""

import pytest

from models.benchmarks.scorer import get_scorer
from models.errors import ScoringError
from models.evaluation.results import Estimate
from models.evaluation.table_numbers import table_number

HALF = Estimate(value=0.5, low=0.25, high=0.75)


def mme(*pictures: tuple[str, float, float]) -> list:
    """Pairs of answers: category, and what each of the two questions about a picture is worth."""
    rows = []
    for number, (category, *worth) in enumerate(pictures):
        row = {"category": category, "question_id": f"{number}.png"}
        rows += [(row, value) for value in worth]
    return rows


def hallusion(set_id: str, figure: str, question: str, right: float) -> tuple:
    row = {
        "category": "VS",
        "subcategory": "chart",
        "visual_input": "1",
        "set_id": set_id,
        "figure_id": figure,
        "question_id": question,
    }
    return row, right


def test_an_accuracy_is_its_headline_in_percent() -> None:
    found = table_number(get_scorer("mathvista"), HALF, [], seed=0)
    assert (found.value, found.low, found.high) == (50, 25, 75)


def test_mme_is_the_sum_over_categories() -> None:
    # count: 3 of 4 right (75) and 1 of 2 pairs (50); OCR: 2 of 2 (100) and 1 of 1 (100). 125 + 200.
    judged = mme(("count", 1, 1), ("count", 1, 0), ("OCR", 1, 1))
    found = table_number(get_scorer("mme"), HALF, judged, seed=0)
    assert found.value == 325
    # Resampled within categories: count is worth 50 (twice the half pair) to 200, OCR always 200.
    assert (found.low, found.high) == (250, 400)
    assert found == table_number(get_scorer("mme"), HALF, judged, seed=0)


def test_half_a_pair_is_no_number() -> None:
    with pytest.raises(ScoringError, match="two questions about each picture"):
        table_number(get_scorer("mme"), HALF, mme(("OCR", 1, 1))[:1], seed=0)


def test_hallusionbench_is_the_mean_of_three() -> None:
    # aAcc 3/4; figures: 1 of 2 right; questions (over the figures of a set): 1 of 2. Mean of 75, 50, 50.
    judged = [
        hallusion("0", "1", "0", 1),
        hallusion("0", "1", "1", 1),
        hallusion("0", "2", "0", 1),
        hallusion("0", "2", "1", 0),
    ]
    found = table_number(get_scorer("hallusionbench"), HALF, judged, seed=0)
    assert found.value == pytest.approx(175 / 3)
    assert (found.low, found.high) == (pytest.approx(175 / 3), pytest.approx(175 / 3))  # one set: no spread


def test_hallusionbench_draws_whole_sets() -> None:
    judged = [hallusion(str(number), "1", "0", number % 2) for number in range(40)]
    found = table_number(get_scorer("hallusionbench"), HALF, judged, seed=0)
    assert found.value == 50
    assert 30 < found.low < 40 < 60 < found.high < 70  # 40 coins: 50 +- 15.5


def test_hallusionbench_without_pictures_is_no_number() -> None:
    row, right = hallusion("0", "0", "0", 1)
    with pytest.raises(ScoringError, match="No row of HallusionBench with a picture"):
        table_number(get_scorer("hallusionbench"), HALF, [({**row, "visual_input": "0"}, right)], seed=0)
