"""The files in which a run of a benchmark is kept: results, rows, and the results for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.evaluation.benchmark_results import BenchmarkResults, to_text, worth
from models.evaluation.benchmark_rows import AskedRow
from models.evaluation.charts_page import benchmark_page
from models.rundir import write_atomically

RESULTS, ROWS, TABLE, CHART = "metrics.json", "predictions.parquet", "table.txt", "chart.html"


def save(folder: Path, results: BenchmarkResults) -> None:
    """Write the results, for programs and for people; not the rows (``benchmark_rows.write_asked``)."""
    results.save(folder / RESULTS)
    write_atomically(folder / TABLE, to_text(results) + "\n")
    write_atomically(folder / CHART, benchmark_page(results))


def rows_table(results: BenchmarkResults, rows: Sequence[AskedRow]) -> dict[str, list[Any]]:
    """The rows for a tracker, by column; the transcripts are in the file of the rows."""
    return {
        "id": [row.id for row in rows],
        "category": [row.category for row in rows],
        "question": [row.question_text for row in rows],
        "gold": [" | ".join(row.gold) for row in rows],
        "prediction": [row.prediction for row in rows],
        "score": [worth(row, results.headline_field) for row in rows],
        "outcome": [row.outcome for row in rows],
        "reason": [row.reason for row in rows],
        "tokens": [row.num_tokens for row in rows],
        "seconds": [row.seconds for row in rows],
    }
