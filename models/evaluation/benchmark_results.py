"""What a run of a benchmark came to: its ``metrics.json``, its table, and how the rows are summed up.

Rows that we broke and rows that could not be asked are in no metric and in every count.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from models.benchmarks.scorer import Row, Scorer, summary
from models.benchmarks.sets import LocalSet
from models.config import Style
from models.errors import ScoringError
from models.evaluation.benchmark_rows import AskedRow
from models.evaluation.judged import JudgeResults, judge_lines, judge_warnings
from models.evaluation.metrics import bootstrap_mean, wilson_interval
from models.evaluation.results import Estimate, Frozen, SavedResults
from models.evaluation.table_numbers import table_number
from models.protocol import is_well_formed

log = logging.getLogger(__name__)

BENCHMARK_VERSION = "benchmark/3"

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_.@]+")
_MAX_METRIC_LINES = 24


class SetFacts(Frozen):
    """The set that was measured. ``digest`` covers ids, questions, answers and pictures."""

    benchmark: str
    source: str
    split: str
    num_rows: int
    num_published_rows: int
    is_partial: bool
    digest: str


class ModelFacts(Frozen):
    """Who answered. ``name`` is that of a known model, empty for any other. ``digest`` covers every file of a
    model folder; an endpoint shows us none. ``source`` is the registered version (models:/vlm-r3/NUMBER) or
    s3:// prefix that the folder is a copy of, if it is one.
    """

    name: str = ""
    path: str
    source: str = ""
    digest: str | None
    endpoint: str
    served_model: str
    engine: str


class CategoryScore(Frozen):
    """The headline over the scored rows of one category."""

    num_rows: int
    num_scored: int
    headline: Estimate | None


class OtherRun(Frozen):
    """The run that another one is compared with: what it was called, and what it measured."""

    name: str
    model: ModelFacts
    style: Style
    headline: Estimate


class BenchmarkComparison(Frozen):
    """The headline minus that of another run on the same rows, paired by row (bootstrap).

    ``num_rows`` rows are compared; ``num_left_out`` have no score in one of the two runs, or in both.
    """

    against: OtherRun
    difference: Estimate
    num_rows: int
    num_left_out: int


class BenchmarkResults(SavedResults):
    """One benchmark, one model. ``headline`` is the mean of the scorer's headline field with its interval:
    Wilson for an accuracy, bootstrap for a similarity. ``table_number`` is what tables print
    (:mod:`models.evaluation.table_numbers`), None where it has no meaning on the scored rows. ``answer_rate``
    is the share of texts in which an answer was found at all. ``categories`` are those of the benchmark's
    authors.

    ``metrics`` and ``parse_counts`` are the scorer's own, over the ``num_scored`` rows; None, with
    ``metrics_note``, where it needs whole groups of rows and some row of a group is missing. Rates and means
    are over the scored rows too.

    ``needs_llm`` counts answers that the rule cannot read and a language model could, None for a benchmark
    without judges. ``judge`` is what a judge made of the rows; everything else here is by the rule alone.
    """

    contents = "a benchmark"
    version: str = BENCHMARK_VERSION
    data: SetFacts
    model: ModelFacts
    style: Style
    variant: str = "full"
    seed: int
    scorer: str
    scorer_version: str
    primary: str
    num_rows: int
    num_scored: int
    num_failed: int
    num_unasked: int
    headline_field: str
    headline: Estimate
    table_number: Estimate | None
    categories: dict[str, CategoryScore]
    metrics: dict[str, Any] | None
    metrics_note: str
    parse_counts: dict[str, int] | None
    truncation_rate: float
    protocol_error_rate: float
    format_rate: float | None
    answer_rate: float
    crops_per_question: float
    tokens_per_question: float | None
    seconds_per_question: float
    needs_llm: int | None = None
    judge: JudgeResults | None = None
    comparison: BenchmarkComparison | None = None

    def numbers(self) -> Mapping[str, float]:
        """Every number under its name of docs/metrics.md, for ``metrics.jsonl`` and the tracker."""
        area = f"benchmark/{self.data.benchmark}"
        found: dict[str, float | None] = {
            "headline": self.headline.value,
            "headline_low": self.headline.low,
            "headline_high": self.headline.high,
            "table_number": None if self.table_number is None else self.table_number.value,
            "num_rows": self.num_rows,
            "num_scored": self.num_scored,
            "num_failed": self.num_failed,
            "num_unasked": self.num_unasked,
            "truncation_rate": self.truncation_rate,
            "protocol_error_rate": self.protocol_error_rate,
            "format_rate": self.format_rate,
            "answer_rate": self.answer_rate,
            "crops_per_question": self.crops_per_question,
            "tokens_per_question": self.tokens_per_question,
            "seconds_per_question": self.seconds_per_question,
            "needs_llm": self.needs_llm,
            **self._judge_numbers(),
            **{f"metrics/{name}": value for name, value in flatten(self.metrics or {})},
            **self._difference(),
        }
        return {f"{area}/{name}": value for name, value in found.items() if value is not None}

    def _judge_numbers(self) -> Mapping[str, float | None]:
        if self.judge is None:
            return {}
        metrics = flatten(self.judge.metrics or {}, "metrics/")
        return {f"judge/{name}": value for name, value in (*self.judge.numbers().items(), *metrics)}

    def _difference(self) -> Mapping[str, float]:
        if self.comparison is None:
            return {}
        found = self.comparison
        return {
            "difference": found.difference.value,
            "difference_low": found.difference.low,
            "difference_high": found.difference.high,
            "difference_num_rows": found.num_rows,
            "difference_num_left_out": found.num_left_out,
        }


def summarise(
    scorer: Scorer,
    local: LocalSet,
    model: ModelFacts,
    asked: Sequence[tuple[Row, AskedRow]],
    *,
    style: Style,
    seed: int,
    needs_llm: int | None = None,
    judge: JudgeResults | None = None,
) -> BenchmarkResults:
    """The results of all rows, in the order of the set. Raises ScoringError when no row was scored."""
    scored = [(row, found) for row, found in asked if found.score is not None]
    if not scored:
        _, first = asked[0]
        raise ScoringError(
            f"{scorer.name}: none of {len(asked)} rows was scored, so there is no number. The first, "
            f"{first.id!r}, is {first.outcome}: {first.reason}"
        )
    transcripts = [found.transcript for _, found in scored if found.transcript is not None]
    tokens = [found.num_tokens for _, found in scored]
    metrics, note = _metrics(scorer, scored)
    headline = _headline(scorer, [found for _, found in scored], seed=seed)
    return BenchmarkResults(
        data=SetFacts(**local.describe()),
        model=model,
        style=style,
        seed=seed,
        scorer=scorer.name,
        scorer_version=scorer.version,
        primary=scorer.primary,
        num_rows=len(asked),
        num_scored=len(scored),
        num_failed=sum(found.outcome == "failed" for _, found in asked),
        num_unasked=sum(found.outcome == "unasked" for _, found in asked),
        headline_field=scorer.headline,
        headline=headline,
        table_number=_table_number(scorer, headline, scored, seed=seed),
        categories=_categories(scorer, [found for _, found in asked], seed=seed),
        metrics=None if metrics is None else metrics["metrics"],
        metrics_note=note,
        parse_counts=None if metrics is None else metrics["counts"],
        truncation_rate=fmean(each.stop.is_truncated for each in transcripts),
        protocol_error_rate=fmean(bool(each.errors) for each in transcripts),
        format_rate=None
        if style == "direct"
        else fmean(is_well_formed(each.sampled_text) for each in transcripts),
        answer_rate=fmean(found.prediction is not None for _, found in scored),
        crops_per_question=fmean(len(each.crops) for each in transcripts),
        tokens_per_question=None if None in tokens else fmean(number or 0 for number in tokens),
        seconds_per_question=fmean(found.seconds for _, found in scored),
        needs_llm=needs_llm,
        judge=judge,
    )


def worth(found: AskedRow, headline_field: str) -> float | None:
    """What a row's answer is worth, from 0 to 1; None for a row that has no score."""
    return None if found.score is None else float(found.score[headline_field] or 0.0)


def to_text(results: BenchmarkResults) -> str:
    """The results for a terminal, ASCII."""
    data, unit = results.data, results.headline
    facts = results.model
    model = facts.source or facts.path or f"{facts.served_model} at {facts.endpoint}"
    tokens = "-" if results.tokens_per_question is None else f"{results.tokens_per_question:.1f}"
    lines = [
        f"{data.benchmark} ({data.source}, split {data.split}), {_asked_how(results)}, {model}",
        f"rows        {results.num_rows} of {data.num_published_rows} published: {results.num_scored} "
        f"scored, {results.num_failed} failed, {results.num_unasked} not asked",
        f"{results.headline_field:11} {100 * unit.value:.1f} % [{100 * unit.low:.1f}, {100 * unit.high:.1f}] "
        f"over {results.num_scored} rows",
        f"per row     {tokens} tokens, {results.crops_per_question:.2f} crops, "
        f"{results.seconds_per_question:.2f} s; cut off {100 * results.truncation_rate:.1f} %, protocol "
        f"errors {100 * results.protocol_error_rate:.1f} %",
        f"scorer      {results.scorer} version {results.scorer_version} ({results.primary}), seed "
        f"{results.seed}, data {data.digest[:12]}, model {(results.model.digest or 'unknown')[:12]}",
        *_difference_lines(results),
    ]
    if results.needs_llm is not None:
        lines.append(f"needs_llm   {results.needs_llm} answers that the rule cannot read")
    lines += _metric_lines(results.metrics)
    if results.judge is not None:
        lines += [*judge_lines(results.judge), *_metric_lines(results.judge.metrics)]
    return "\n".join([*lines, *warnings(results)])


def _metric_lines(metrics: Mapping[str, Any] | None) -> Iterator[str]:
    numbers = list(flatten(metrics or {}))
    yield from (f"  {name:60} {value:g}" for name, value in numbers[:_MAX_METRIC_LINES])
    if len(numbers) > _MAX_METRIC_LINES:
        yield f"  and {len(numbers) - _MAX_METRIC_LINES} more in metrics.json"


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested metrics as ``outer/inner``, in lower case with underscores."""
    for key, value in metrics.items():
        name = prefix + _NOT_IN_A_NAME.sub("_", key.lower())
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)


def _asked_how(results: BenchmarkResults) -> str:
    return results.style if results.variant == "full" else f"{results.style}, variant {results.variant}"


def _metrics(scorer: Scorer, scored: Sequence[tuple[Row, AskedRow]]) -> tuple[dict[str, Any] | None, str]:
    """The scorer's metrics over the scored rows; None and why when it refuses them."""
    rows = [row for row, _ in scored]
    texts = [found.prediction or "" for _, found in scored]
    scores = [found.score for _, found in scored if found.score is not None]
    try:
        return summary(scorer, rows, texts, scores), ""
    except ScoringError as error:
        return None, str(error)


def _table_number(
    scorer: Scorer, headline: Estimate, scored: Sequence[tuple[Row, AskedRow]], *, seed: int
) -> Estimate | None:
    judged = [(row, worth(found, scorer.headline) or 0.0) for row, found in scored]
    try:
        return table_number(scorer, headline, judged, seed=seed)
    except ScoringError as error:
        log.warning("%s: no number for a table. %s", scorer.name, error)
        return None


def _headline(scorer: Scorer, scored: Sequence[AskedRow], *, seed: int) -> Estimate:
    values = [value for found in scored if (value := worth(found, scorer.headline)) is not None]
    if scorer.is_similarity:
        return bootstrap_mean(values, seed=seed)
    return wilson_interval(sum(value == 1.0 for value in values), len(values))


def _categories(scorer: Scorer, asked: Sequence[AskedRow], *, seed: int) -> dict[str, CategoryScore]:
    """The headline per category, in the order of their names; None where no row has a score."""
    by_name: dict[str, list[AskedRow]] = {}
    for found in asked:
        by_name.setdefault(found.category, []).append(found)
    return {name: _category(scorer, rows, seed=seed) for name, rows in sorted(by_name.items())}


def _category(scorer: Scorer, rows: Sequence[AskedRow], *, seed: int) -> CategoryScore:
    scored = [row for row in rows if row.score is not None]
    headline = _headline(scorer, scored, seed=seed) if scored else None
    return CategoryScore(num_rows=len(rows), num_scored=len(scored), headline=headline)


def _difference_lines(results: BenchmarkResults) -> Iterator[str]:
    if results.comparison is not None:
        compared = results.comparison
        found, other = compared.difference, compared.against
        yield (
            f"difference  {100 * found.value:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}] "
            f"to {other.name!r} ({100 * other.headline.value:.1f} %) over {compared.num_rows} rows; "
            f"{compared.num_left_out} left out, without a score in one of the two"
        )


def warnings(results: BenchmarkResults) -> Iterator[str]:
    """What a reader must know before quoting the numbers."""
    if results.data.is_partial:
        yield "WARNING: the set is not the published one in size; these are not the benchmark's numbers."
    if results.num_unasked:
        yield f"WARNING: {results.num_unasked} rows were not asked; predictions.parquet says why for each."
    if results.num_failed:
        yield f"WARNING: {results.num_failed} rows failed on our side; the next start asks them again."
    if results.judge is not None:
        yield from judge_warnings(results.judge)
    if results.metrics is None:
        yield f"WARNING: the benchmark's own metrics are missing. {results.metrics_note}"
    if results.truncation_rate > 0:
        yield (
            f"WARNING: {100 * results.truncation_rate:.1f} % of the answers were cut off by a limit; see "
            "look.max_crops and engine.max_model_len."
        )
