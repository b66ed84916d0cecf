"""The files in which a run of a benchmark is kept: results, rows, and the results for people."""

from pathlib import Path

from models.evaluation.benchmark_results import BenchmarkResults, to_text
from models.evaluation.charts_page import benchmark_page
from models.rundir import write_atomically

RESULTS, ROWS, TABLE, CHART = "metrics.json", "predictions.parquet", "table.txt", "chart.html"


def save(folder: Path, results: BenchmarkResults) -> None:
    """Write the results, for programs and for people; not the rows (``benchmark_rows.write_asked``)."""
    results.save(folder / RESULTS)
    write_atomically(folder / TABLE, to_text(results) + "\n")
    write_atomically(folder / CHART, benchmark_page(results))
