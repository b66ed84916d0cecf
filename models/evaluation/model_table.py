"""The table of models over benchmarks: measured rows beside the published ones, with what tells them apart.

A published number keeps the cautions of :mod:`models.published_numbers`. A measured cell says when its set
was not whole, when rows have no score, when answers were cut off or not found, and which of several runs it
is.
Nothing is averaged and nothing is left out without a word.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from models.baselines import Baseline
from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.results import Estimate
from models.published_numbers import Caution, PublishedNumbers, PublishedTable

# Names for people, in the spelling of the paper.
TITLES = {
    "mathvista": "MathVista",
    "mathvision": "MathVision",
    "mmmu": "MMMU",
    "mme": "MME",
    "scienceqa": "ScienceQA",
    "docvqa": "DocVQA",
    "hallusionbench": "HallusionBench",
    "average": "Avg.",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of one run of a benchmark, where they are kept, and when they were written (seconds)."""

    results: BenchmarkResults
    place: str
    written: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A number of a table, with its interval where it was measured. ``notes`` are numbers of footnotes."""

    value: float | None
    low: float | None = None
    high: float | None = None
    notes: tuple[int, ...] = ()
    results: BenchmarkResults | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """One model, asked in one way. ``cells`` are by column; a column without a number is absent."""

    model: str
    source: Literal["published", "measured"]
    asked: str
    cells: dict[str, Cell]
    notes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelTable:
    """The whole table; footnote ``n`` is ``footnotes[n - 1]``. ``notes`` are about all of it."""

    title: str
    columns: tuple[str, ...]
    column_notes: dict[str, tuple[int, ...]]
    rows: tuple[TableRow, ...]
    footnotes: tuple[str, ...]
    notes: tuple[int, ...] = ()


@dataclass(slots=True)
class Footnotes:
    """Texts, numbered in the order in which they are first needed."""

    texts: list[str] = field(default_factory=list)

    def numbers(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The numbers of some texts, smallest first; the same text has one number."""
        found = list(texts)
        self.texts += [text for text in dict.fromkeys(found) if text not in self.texts]
        return tuple(sorted({self.texts.index(text) + 1 for text in found}))


def build_table(
    published: PublishedNumbers,
    measured: Sequence[Measured],
    baselines: Sequence[Baseline],
    *,
    number: int = 1,
) -> ModelTable:
    """A table of the paper with the measured rows, each below its model's published row, else at the end."""
    printed = published.table(number)
    footnotes = Footnotes()
    general = footnotes.numbers(
        each.text for each in published.cautions if not each.columns and not each.models
    )
    columns = {
        column: footnotes.numbers(
            [*_column_cautions(published.cautions, column), *_mixtures(measured, column)]
        )
        for column in printed.columns
    }
    groups = _groups(measured, printed.columns)
    crop_notes = {baseline.name: baseline.crop_note for baseline in baselines}
    rows: list[TableRow] = []
    for shown in _published_rows(published, printed, footnotes):
        rows.append(shown)
        names = {baseline.name for baseline in baselines if baseline.published == shown.model}
        for group in [group for group in groups if group[0].results.model.name in names]:
            rows.append(_measured_row(group, printed.columns, crop_notes, footnotes))
            groups.remove(group)
    rows += [_measured_row(group, printed.columns, crop_notes, footnotes) for group in groups]
    return ModelTable(
        title=f"Table {printed.number} of {published.source}, with what was measured here",
        columns=printed.columns,
        column_notes=columns,
        rows=tuple(rows),
        footnotes=tuple(footnotes.texts),
        notes=general,
    )


def model_label(results: BenchmarkResults) -> str:
    """What a measured model is called: its known name, or that of its folder or endpoint."""
    model = results.model
    if model.name:
        return model.name
    if model.source:
        return model.source
    if model.path:
        return f"{Path(model.path).name} ({(model.digest or '')[:8]})"
    return f"{model.served_model} at {model.endpoint}"


def _published_rows(
    published: PublishedNumbers, printed: PublishedTable, footnotes: Footnotes
) -> Iterable[TableRow]:
    for row in printed.rows:
        about = [each for each in published.cautions if row.model in each.models]
        cells = {
            column: Cell(
                value, notes=footnotes.numbers(each.text for each in about if column in each.columns)
            )
            for column, value in row.values.items()
        }
        whole = [row.origin] if row.origin else []
        whole += [each.text for each in about if not each.columns]
        yield TableRow(row.label, "published", "", cells, footnotes.numbers(whole))


def _groups(measured: Sequence[Measured], columns: Sequence[str]) -> list[list[Measured]]:
    """The runs that make up each row, of the benchmarks that have a column."""
    wanted = sorted((run for run in measured if run.results.data.benchmark in columns), key=_row_key)
    return [list(group) for _, group in groupby(wanted, key=_row_key)]


def _measured_row(
    runs: Sequence[Measured], columns: Sequence[str], crop_notes: Mapping[str, str], footnotes: Footnotes
) -> TableRow:
    first = runs[0].results
    note = crop_notes.get(first.model.name, "") if first.style == "look-again" else ""
    notes = footnotes.numbers([note] if note else [])
    cells = {
        column: cell
        for column in columns
        if (cell := _measured_cell([run for run in runs if run.results.data.benchmark == column], footnotes))
    }
    return TableRow(model_label(first), "measured", _asked(first), cells, notes)


def _row_key(run: Measured) -> tuple[str, ...]:
    results = run.results
    model = results.model
    who = (model.digest or "", model.endpoint, model.served_model)
    return (model_label(results), *who, results.style, results.variant)


def _asked(results: BenchmarkResults) -> str:
    return results.style if results.variant == "full" else f"{results.style}, {results.variant}"


def _measured_cell(runs: Sequence[Measured], footnotes: Footnotes) -> Cell | None:
    """The newest run on a whole set, else the newest; a note names the runs that were passed over."""
    if not runs:
        return None
    chosen, *others = sorted(runs, key=lambda run: (run.results.data.is_partial, -run.written))
    results = chosen.results
    number = results.table_number
    notes = [*_doubts(results)]
    if others:
        passed_over = ", ".join(_in_short(run.results) for run in others)
        notes.append(f"{_title(results)}: the newest of {len(runs)} runs; the others: {passed_over}.")
    numbers = footnotes.numbers(notes)
    if number is None:
        return Cell(None, notes=numbers, results=results)
    return Cell(number.value, number.low, number.high, numbers, results)


def _doubts(results: BenchmarkResults) -> Iterable[str]:
    """What keeps a measured number from being the benchmark's, in full sentences."""
    data = results.data
    if data.is_partial:
        yield (
            f"{_title(results)}: PARTIAL SET, {data.num_rows} rows where {data.split} has "
            f"{data.num_published_rows}: not the benchmark's number."
        )
    if results.num_scored < results.num_rows:
        yield (
            f"{_title(results)}: UNSCORED ROWS, {results.num_scored} of {results.num_rows} have a score; "
            f"{results.num_failed} failed on our side, {results.num_unasked} were not asked."
        )
    if results.table_number is None:
        yield f"{_title(results)}: no number. {results.metrics_note or 'The scored rows do not allow it.'}"
    if results.truncation_rate > 0:
        share = 100 * results.truncation_rate
        yield f"{_title(results)}: {share:.1f} % of the answers were cut off by a limit."
    if results.needs_llm:
        yield (
            f"{_title(results)}: the rule cannot read {results.needs_llm} of {results.num_scored} answers, "
            f"which count as wrong.{_by_judge(results)}"
        )
    elif results.judge is not None:
        yield f"{_title(results)}: by the rule alone.{_by_judge(results)}"
    if results.answer_rate < 1:
        yield (
            f"{_title(results)}: {100 * (1 - results.answer_rate):.1f} % of the texts hold no answer in the "
            "model's form; they count as wrong."
        )


def _by_judge(results: BenchmarkResults) -> str:
    """What a judge made of the same answers; its share of right ones is another metric, so in no cell."""
    judge = results.judge
    if judge is None:
        return " No judge was asked."
    if judge.headline is None:
        return f" The judge {judge.model} gave no verdict."
    right, low, high = (100 * value for value in judge.headline.model_dump().values())
    return (
        f" With judge {judge.model}, {right:.1f} % [{low:.1f}, {high:.1f}] of {judge.num_scored} answers are "
        f"right ({judge.num_failed} without a verdict)."
    )


def _mixtures(measured: Sequence[Measured], column: str) -> Iterable[str]:
    """A warning for a column whose measured rows were not measured alike."""
    results = [run.results for run in measured if run.results.data.benchmark == column]
    title = TITLES.get(column, column)
    splits = sorted({found.data.split for found in results})
    if len(splits) > 1:
        yield f"{title}: the measured rows are on different splits ({', '.join(splits)}): not comparable."
    elif len({found.data.digest for found in results if not found.data.is_partial}) > 1:
        yield f"{title}: the measured rows are on files that differ (data digest): not comparable."
    if len(versions := sorted({found.scorer_version for found in results})) > 1:
        yield f"{title}: the measured rows were scored by different scorer versions ({', '.join(versions)})."


def _column_cautions(cautions: Sequence[Caution], column: str) -> list[str]:
    return [each.text for each in cautions if column in each.columns and not each.models]


def _title(results: BenchmarkResults) -> str:
    return f"{TITLES[results.data.benchmark]}, {model_label(results)}, {_asked(results)}"


def _in_short(results: BenchmarkResults) -> str:
    value = "no number" if results.table_number is None else _points(results.table_number)
    return f"{value} ({results.data.split}, {results.num_scored} rows)"


def _points(number: Estimate) -> str:
    return f"{number.value:.1f}"
