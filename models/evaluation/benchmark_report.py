"""The page about one benchmark on one model: its numbers, and what the model looked at in each row."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from models.benchmarks.scorer import Row
from models.benchmarks.sets import BenchmarkQuestion, LocalSet
from models.config import Style
from models.evaluation.benchmark_results import BenchmarkResults, flatten, warnings
from models.evaluation.benchmark_rows import AskedRow
from models.evaluation.gallery import Attempt, Column, GallerySet, Subject, gallery
from models.evaluation.report_html import cell, duration, facts, table, tile, warning
from models.evaluation.report_inputs import Fact
from models.evaluation.report_page import Page, Section
from models.run_config import BenchmarkRun

PAGE = "report.html"


def write_page(
    path: Path,
    config: BenchmarkRun,
    local: LocalSet,
    results: BenchmarkResults,
    asked: Sequence[tuple[Row, AskedRow]],
) -> int:
    """Write the page of a benchmark and return its size in bytes. ``asked`` are all rows, scored."""
    column = _column(results, local, asked)
    shown = GallerySet(
        name=results.data.benchmark,
        label=f"{results.data.benchmark}, {results.data.split}",
        columns=(column,),
        subjects=lambda ids: _subjects(local, ids, results.style),
        compare=(column.name, ""),
        num_trajectories=config.report.num_trajectories,
    )
    data = gallery([shown], look=config.look, max_bytes=config.report.max_picture_bytes)
    page = Page(
        title=f"{_name(results)} on {results.data.benchmark}",
        subtitle=f"{results.data.source}, split {results.data.split}, asked {results.style}",
        sections=(
            Section("outcome", "Outcome", _outcome(results)),
            Section("results", "Results", _numbers(results), "Results"),
            Section("origin", "Origin", facts(_origin(results)), "Where this comes from"),
        ),
        gallery=data,
    )
    return page.write(path)


def _name(results: BenchmarkResults) -> str:
    return results.model.served_model or Path(results.model.path).name


def _outcome(results: BenchmarkResults) -> str:
    found, tokens = results.headline, results.tokens_per_question
    counts = [
        Fact("rows", str(results.num_rows), f"of {results.data.num_published_rows} published"),
        Fact("scored", str(results.num_scored)),
        Fact("failed on our side", str(results.num_failed)),
        Fact("not asked", str(results.num_unasked)),
        Fact("crops per question", f"{results.crops_per_question:.2f}"),
        Fact("tokens per question", "not reported" if tokens is None else f"{tokens:.1f}"),
        Fact("time per question", duration(results.seconds_per_question), "queue included"),
        Fact("cut off by a limit", f"{results.truncation_rate:.1%}"),
        Fact("with a refused box", f"{results.protocol_error_rate:.1%}"),
    ]
    return (
        f'<div class="hero"><h2>{results.headline_field.replace("_", " ")}: {100 * found.value:.1f} %</h2>'
        f"<p>95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}, over {results.num_scored} rows."
        f'</p></div><div class="tiles">{tile(results.headline_field.replace("_", " "), found)}</div>'
        + "".join(map(warning, warnings(results)))
        + facts(counts)
    )


def _numbers(results: BenchmarkResults) -> str:
    rows = [(name, cell(f"{value:g}")) for name, value in flatten(results.metrics or {})]
    unparsed = [(name, cell(str(count))) for name, count in (results.parse_counts or {}).items()]
    return table(f"The benchmark's own metrics, by {results.scorer}", ["metric", "value"], rows) + (
        table("Texts that the rule could not parse", ["metric", "rows"], unparsed) if unparsed else ""
    )


def _origin(results: BenchmarkResults) -> Sequence[Fact]:
    model, data = results.model, results.data
    return (
        Fact("model", model.path or f"{model.served_model} at {model.endpoint}"),
        Fact("model digest", model.digest or "an endpoint shows none"),
        Fact("engine", model.engine),
        Fact("set digest", data.digest),
        Fact("scorer", f"{results.scorer} version {results.scorer_version}", results.primary),
        Fact("seed", str(results.seed)),
    )


def _column(results: BenchmarkResults, local: LocalSet, asked: Sequence[tuple[Row, AskedRow]]) -> Column:
    kind_of, headline = local.published.kind_of, results.headline_field
    attempts = {found.id: _attempt(found, headline, kind_of(row)) for row, found in asked}
    return Column("model", _name(results), attempts)


def _attempt(row: AskedRow, headline: str, kind: str) -> Attempt:
    score = None if row.score is None else float(row.score[headline] or 0.0)
    return Attempt(
        transcript=row.transcript,
        correct=None if score is None else score == 1.0,
        answer=row.prediction,
        kind=kind,
        score=score,
        reason=row.reason,
    )


def _subjects(local: LocalSet, ids: Collection[str], style: Style) -> Iterator[Subject]:
    found = (each for each in local.questions() if each.id in ids)
    for each in islice(found, len(ids)):  # the rest of a large set need not be read
        prompt = each.prompt(style)
        yield Subject(
            id=each.id,
            kind=local.published.kind_of(each.row),
            source=local.published.name,
            text=prompt.text,
            answers=local.published.answers(each.row),
            images=_images(each, prompt.numbers),
        )


def _images(each: BenchmarkQuestion, numbers: Sequence[int]) -> Callable[[], list[Image.Image]]:
    return lambda: [each.image(number) for number in numbers]
