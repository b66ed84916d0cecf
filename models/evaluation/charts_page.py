"""Charts of intervals as a page of their own, for MLflow, which shows HTML: the headline and its parts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.charts import Whisker, dot_plot
from models.evaluation.results import Estimate, Results

_STYLE = Path(__file__).parent / "page" / "style.css"


def benchmark_page(results: BenchmarkResults) -> str:
    """The headline of a benchmark over all rows and per category, in percent; HTML."""
    return _page(_title(results), benchmark_charts(results))


def benchmark_charts(results: BenchmarkResults) -> list[str]:
    """The headline over all rows and per category, and the difference to another run where there is one."""
    whole = _whisker(f"all ({results.num_scored})", results.headline, is_emphasised=True)
    parts = [
        _whisker(f"{name} ({part.num_scored})", part.headline)
        for name, part in results.categories.items()
        if part.headline is not None
    ]
    charts = [dot_plot(_title(results), [whole, *parts])]
    if results.comparison is not None:
        found = results.comparison
        row = _whisker(f"to {found.against.name}", found.difference)
        charts.append(dot_plot("difference, paired by row", [row], unit="points", zero_line=True))
    return charts


def evaluation_page(results: Results) -> str:
    """Greedy accuracy of every row of an evaluation, and the differences, in percent; HTML."""
    rows = [_whisker(row.label, row.overall.accuracy) for row in results.variants]
    charts = [dot_plot("greedy accuracy", rows)]
    differences = [
        _whisker(f"{results.label(found.new)} - {results.label(found.old)}", found.difference)
        for found in results.comparisons
        if not found.kind
    ]
    if differences:
        charts.append(dot_plot("differences, paired by question", differences, unit="points", zero_line=True))
    return _page("evaluation", charts)


def _title(results: BenchmarkResults) -> str:
    return f"{results.data.benchmark}, {results.style}: {results.headline_field} (rows)"


def _whisker(label: str, found: Estimate, *, is_emphasised: bool = False) -> Whisker:
    return Whisker(label, 100 * found.value, 100 * found.low, 100 * found.high, is_emphasised)


def _page(title: str, charts: Sequence[str]) -> str:
    """Charts in the style of the report."""
    style = f"<style>{_STYLE.read_text(encoding='utf-8')}</style>"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>{style}'
    body = f"<body><main>{''.join(charts)}</main></body>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
