"""A run of a benchmark beside an earlier one."""

from pathlib import Path

import pytest

from models.errors import ScoringError
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_comparison import compare_with
from models.evaluation.benchmark_results import BenchmarkResults, to_text
from models.evaluation.metrics import wilson_interval
from models.trajectory import GenerationRequest
from tests.unit.evaluation.test_benchmark import Counted, config_of, mme_rows, run_of, set_of, yes

NUM_PAIRS = 100


def always(answer: str):
    def script(request: GenerationRequest) -> str:
        return f"<think>I see.</think><answer>{answer}</answer>"

    return script


def finished(
    folder: Path, script, *, broken: frozenset[str] = frozenset(), rows=None, style="look-again"
) -> Path:
    """The folder of a finished run on 100 pairs, whose golds are Yes and No in turn."""
    folder.mkdir()
    published = set_of("mme", folder, mme_rows(NUM_PAIRS) if rows is None else rows)
    config = config_of("mme", folder)
    run = run_of(folder, config)
    measure(run, config, published, Counted(script, broken=broken))
    return run.path


def right(request: GenerationRequest) -> str:
    """Right at every row: the first question of a picture has the answer Yes."""
    place = int(request.request_id.removesuffix("#0").rpartition("#")[2])
    return f"<think>I see.</think><answer>{'No' if place % 2 else 'Yes'}</answer>"


def test_the_difference_is_paired_by_row_and_says_what_was_left_out(tmp_path: Path) -> None:
    """Right everywhere against Yes everywhere, which is right at every second row. One row of each broke:
    200 - 2 rows are compared, the better one gains 1 at 99 rows whose gold is No, but for the broken one.
    """
    new = finished(tmp_path / "new", right, broken=frozenset({"OCR/0.png#0"}))
    old = finished(tmp_path / "old", yes, broken=frozenset({"OCR/3.png#7"}))
    results = compare_with(new, old, name="yes")
    found = results.comparison
    assert found is not None
    assert (found.num_rows, found.num_left_out) == (198, 2)
    assert found.difference.value == pytest.approx(99 / 198)
    # Standard error sqrt(0.25 / 198) = 0.0355.
    assert found.difference.low == pytest.approx(0.5 - 1.96 * 0.0355, abs=0.01)
    assert found.difference.high == pytest.approx(0.5 + 1.96 * 0.0355, abs=0.01)
    assert found.against.name == "yes"
    assert found.against.headline == wilson_interval(100, 199)
    assert BenchmarkResults.load(new / "metrics.json") == results
    assert "+50.0 points" in (new / "table.txt").read_text()
    assert "2 left out" in to_text(results)
    assert "paired by row" in (new / "chart.html").read_text()
    assert results.numbers()["benchmark/mme/difference_num_left_out"] == 2
    # A run against itself.
    same = compare_with(new, new, name="itself").comparison
    assert same is not None
    assert (same.difference.low, same.difference.high) == (0.0, 0.0)


def test_runs_of_other_rows_are_refused(tmp_path: Path) -> None:
    new = finished(tmp_path / "new", yes, rows=mme_rows(2))
    old = finished(tmp_path / "old", yes, rows=mme_rows(3))
    with pytest.raises(ScoringError, match=r"'old' measured mme, split 'test', data .* same rows"):
        compare_with(new, old, name="old")


def test_runs_scored_by_another_rule_are_refused(tmp_path: Path) -> None:
    new = finished(tmp_path / "new", yes, rows=mme_rows(2))
    old = finished(tmp_path / "old", yes, rows=mme_rows(2))
    earlier = BenchmarkResults.load(old / "metrics.json")
    earlier.model_copy(update={"scorer_version": "0"}).save(old / "metrics.json")
    with pytest.raises(ScoringError, match=r"scored by mme version 0 .* Run the earlier one again"):
        compare_with(new, old, name="old")


def test_categories_have_intervals_and_a_chart(tmp_path: Path) -> None:
    rows = [
        {**row, "category": "OCR" if number < 12 else "count", "question_id": f"{row['question_id']}"}
        for number, row in enumerate(mme_rows(10))
    ]
    folder = finished(tmp_path / "run", always("Yes"), rows=rows)
    results = BenchmarkResults.load(folder / "metrics.json")
    assert {name: (part.num_rows, part.num_scored) for name, part in results.categories.items()} == {
        "OCR": (12, 12),
        "count": (8, 8),
    }
    assert results.categories["count"].headline == wilson_interval(4, 8)
    chart = (folder / "chart.html").read_text()
    for label in ("all (20)", "OCR (12)", "count (8)"):
        assert label in chart
