"""The page about one benchmark on one model: its numbers, and what the model looked at in each row."""

from collections.abc import Callable, Collection, Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path

from PIL import Image

from models.benchmarks.published import get_published
from models.benchmarks.sets import BenchmarkQuestion, LocalFiles, LocalSet, find_set
from models.config import Style
from models.evaluation.benchmark_files import RESULTS, ROWS
from models.evaluation.benchmark_results import BenchmarkResults, ModelFacts, flatten, warnings, worth
from models.evaluation.benchmark_rows import AskedRow, read_asked
from models.evaluation.charts_page import benchmark_charts
from models.evaluation.gallery import Attempt, Column, GallerySet, Subject, gallery
from models.evaluation.report_html import cell, duration, facts, table, tile, warning
from models.evaluation.report_inputs import Fact
from models.evaluation.report_page import Page, Section
from models.evaluation.variants import get_variant
from models.run_config import BenchmarkRun

PAGE = "report.html"
MODEL, _OTHER = "model", "other"  # columns of the gallery


def write_page(folder: Path, config: BenchmarkRun, other: Path | None = None) -> int:
    """Write ``report.html`` beside the results and rows in ``folder``, and return its size in bytes.

    ``other`` holds an earlier run of the same rows, whose answers are shown beside this run's.
    """
    results = BenchmarkResults.load(folder / RESULTS)
    columns = [_column(MODEL, results, folder)]
    if other is not None:
        columns.append(_column(_OTHER, BenchmarkResults.load(other / RESULTS), other))
    local = _local_set(config)
    shown = GallerySet(
        name=results.data.benchmark,
        label=f"{results.data.benchmark}, {results.data.split}",
        columns=tuple(columns),
        subjects=lambda ids: _subjects(local, ids, results.style),
        compare=(MODEL, _OTHER),
        num_trajectories=config.report.num_trajectories,
    )
    page = Page(
        title=f"{_name(results.model)} on {results.data.benchmark}",
        subtitle=f"{results.data.source}, split {results.data.split}, asked {results.style}",
        sections=(
            Section("outcome", "Outcome", _outcome(results)),
            Section("results", "Results", _numbers(results), "Results"),
            Section("origin", "Origin", facts(_origin(results)), "Where this comes from"),
        ),
        gallery=gallery([shown], look=config.look, max_bytes=config.report.max_picture_bytes),
    )
    return page.write(folder / PAGE)


def _local_set(config: BenchmarkRun) -> LocalSet:
    """The set as it was measured, without reading it for its digest again."""
    published, folder = get_published(config.benchmark), Path(config.data_path)
    names, num_rows = find_set(published, LocalFiles(folder), config.split, allow_partial=True)
    files = tuple(folder / name for name in names)
    return LocalSet(published, config.split, folder, files, num_rows, config.data_digest)


def _name(model: ModelFacts) -> str:
    return model.served_model or Path(model.path).name


def _outcome(results: BenchmarkResults) -> str:
    found, field = results.headline, results.headline_field.replace("_", " ")
    return (
        f'<div class="hero"><h2>{escape(field)}: {100 * found.value:.1f} %</h2>'
        f"<p>95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}, over {results.num_scored} rows."
        f"{_difference(results)}</p></div>"
        + "".join(map(warning, warnings(results)))
        + f'<div class="tiles">{"".join(_tiles(results, field))}</div>'
        + facts(_counts(results))
    )


def _difference(results: BenchmarkResults) -> str:
    if results.comparison is None:
        return ""
    found, other = results.comparison.difference, results.comparison.against
    verdict = "no clear difference"
    if found.low > 0 or found.high < 0:
        verdict = "better" if found.low > 0 else "worse"
    return (
        f" {100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] to "
        f"{escape(other.name)}, paired by row: {verdict}."
    )


def _tiles(results: BenchmarkResults, field: str) -> Iterator[str]:
    yield tile(f"{field}, {_name(results.model)}", results.headline)
    if results.comparison is not None:
        yield tile(f"{field}, {results.comparison.against.name}", results.comparison.against.headline)
    if results.judge is not None and results.judge.headline is not None:
        yield tile(f"{field}, with the judge", results.judge.headline)


def _counts(results: BenchmarkResults) -> Sequence[Fact]:
    tokens = results.tokens_per_question
    return (
        Fact("rows", str(results.num_rows), f"of {results.data.num_published_rows} published"),
        Fact("scored", str(results.num_scored)),
        Fact("failed on our side", str(results.num_failed)),
        Fact("not asked", str(results.num_unasked)),
        Fact("crops per question", f"{results.crops_per_question:.2f}"),
        Fact("tokens per question", "not reported" if tokens is None else f"{tokens:.1f}"),
        Fact("time per question", duration(results.seconds_per_question), "queue included"),
        Fact("cut off by a limit", f"{results.truncation_rate:.1%}"),
        Fact("with a refused box", f"{results.protocol_error_rate:.1%}"),
    )


def _numbers(results: BenchmarkResults) -> str:
    rows = [(name, cell(f"{value:g}")) for name, value in flatten(results.metrics or {})]
    unparsed = [(name, cell(str(count))) for name, count in (results.parse_counts or {}).items()]
    return (
        "".join(benchmark_charts(results))
        + f"<details><summary>All {len(rows)} metrics of the benchmark's own rule</summary>"
        + table(f"By the scorer {results.scorer}", ["metric", "value"], rows)
        + "</details>"
        + (table("Texts that the rule could not parse", ["metric", "rows"], unparsed) if unparsed else "")
    )


def _origin(results: BenchmarkResults) -> Sequence[Fact]:
    model, data = results.model, results.data
    return (
        Fact("model", model.path or f"{model.served_model} at {model.endpoint}"),
        Fact("model digest", model.digest or "an endpoint shows none"),
        Fact("engine", model.engine),
        Fact("variant", results.variant),
        Fact("set digest", data.digest),
        Fact("scorer", f"{results.scorer} version {results.scorer_version}", results.primary),
        Fact("seed", str(results.seed)),
    )


def _column(name: str, results: BenchmarkResults, folder: Path) -> Column:
    attempts = {row.id: _attempt(row, results.headline_field) for row in read_asked(folder / ROWS)}
    label = _name(results.model) if name == MODEL else f"{_name(results.model)} (earlier)"
    return Column(name, label, attempts, get_variant(results.variant).crop_source)


def _attempt(row: AskedRow, headline: str) -> Attempt:
    score = worth(row, headline)
    return Attempt(
        transcript=row.transcript,
        correct=None if score is None else score == 1.0,
        answer=row.prediction,
        kind=row.category,
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
