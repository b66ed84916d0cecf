"""Rule-based benchmark scorers: what each of them is, and how to get one by its name.

A scorer repeats a reference implementation quirk for quirk, so that our numbers can be compared with
published ones; the module of each benchmark names the reference and says where we depart from it. No scorer
asks a model, guesses, or depends on the order of the rows. Numbers are for the text as given: whoever calls
takes the body of ``<answer>`` out first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean
from typing import Any

from models.errors import ConfigError, ScoringError

BENCHMARKS = ("mme", "mmmu", "mathvista", "mathvision", "scienceqa", "docvqa", "hallusionbench")

# A row as the benchmark's authors publish it, under their column names. Pictures are not needed.
Row = Mapping[str, Any]
# What the rule found for one prediction. The fields differ by benchmark; all values are plain JSON.
Score = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """The rule of one benchmark: plain functions under names.

    ``score`` takes a row and the model's text, never raises on any text, and raises ScoringError when the row
    lacks a column. ``aggregate`` and ``counts`` take rows, texts and scores of equal length: the final
    metrics, and how often the rule could not parse a text (such a text is counted as wrong).
    ``primary`` names the reference that ``score`` follows; ``version`` changes whenever a score can change.
    ``line_fields`` are fields that stand beside the row in a file of predictions and that the rule needs.
    """

    name: str
    version: str
    primary: str
    score: Callable[[Row, str], Score]
    aggregate: Callable[[Sequence[Row], Sequence[str], Sequence[Score]], dict[str, Any]]
    counts: Callable[[Sequence[Row], Sequence[str], Sequence[Score]], dict[str, int]]
    line_fields: tuple[str, ...] = ()


def get_scorer(name: str) -> Scorer:
    """The scorer of a benchmark. Raises ConfigError for a name that is none."""
    if name not in BENCHMARKS:
        raise ConfigError(f"Benchmark {name!r} is unknown. There are: {', '.join(BENCHMARKS)}.")
    scorer: Scorer = import_module(f"models.benchmarks.{name}").SCORER
    return scorer


def row_of(line: Mapping[str, Any], scorer: Scorer) -> Row:
    """The row of a line of predictions, with the line's own fields that the scorer needs."""
    beside = {field: line[field] for field in scorer.line_fields if field in line}
    return {**line["row"], **beside}


def summary(
    scorer: Scorer, rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]
) -> dict[str, Any]:
    """The final metrics of scored predictions, with what they are metrics of.

    Raises ScoringError when there is nothing to sum up or the rows do not make up whole groups.
    """
    if not rows or not len(rows) == len(predictions) == len(scores):
        raise ScoringError(
            f"{scorer.name}: {len(rows)} rows, {len(predictions)} predictions and {len(scores)} scores. A "
            "metric needs equally many of them, and at least one."
        )
    return {
        "benchmark": scorer.name,
        "version": scorer.version,
        "n_vectors": len(rows),
        "primary": scorer.primary,
        "metrics": scorer.aggregate(rows, predictions, scores),
        "counts": scorer.counts(rows, predictions, scores),
    }


def column(row: Row, name: str) -> Any:
    """The value of a column. Raises ScoringError when the row has no such column."""
    if name not in row:
        raise ScoringError(
            f"A row has no column {name!r}, only {', '.join(sorted(row))}. Give the rows as the benchmark's "
            "authors publish them."
        )
    return row[name]


def text_column(row: Row, name: str) -> str:
    """The value of a text column. Raises ScoringError when it is missing or is not text."""
    value = column(row, name)
    if not isinstance(value, str):
        raise ScoringError(f"Column {name!r} holds {value!r}, which is no text. Give the published rows.")
    return value


def percent(values: Iterable[float]) -> float | None:
    """The mean of some numbers, times 100; None when there are none."""
    known = list(values)
    return fmean(known) * 100 if known else None
