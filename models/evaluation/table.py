"""The final table of an evaluation, as plain text, Markdown and CSV.

The text is ASCII and at most 150 columns wide, so that it reads the same in a terminal, a log file and a
pipe.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.evaluation.metrics import FOUND_IOU, HOLDS_COVERAGE, ON_OBJECT_IOU
from models.evaluation.results import Comparison, Estimate, Results, Scores, VariantResult

TEXT_WIDTH = 150
# More kinds than this do not fit; CSV and metrics.json have them all.
MAX_KIND_COLUMNS = 3
_NONE = "-"
WARNING = "WARNING"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its header, two lines in text and one in Markdown, and what a row shows in it."""

    group: str
    name: str
    cell: Callable[[VariantResult], str]

    @property
    def title(self) -> str:
        """The header in one line."""
        return f"{self.group} {self.name}".strip()


def columns(results: Results) -> tuple[Column, ...]:
    """The columns for these results. The most frequent kind of question comes first: it must work."""
    main, *others = results.kinds or ("",)
    num_samples = max((v.sampled.num_samples for v in results.variants if v.sampled), default=0)
    kinds = [Column("greedy, %", main, _kind_with_interval(main))] if main else []
    kinds += [Column("greedy, %", "all", lambda v: estimate(v.overall.accuracy))]
    kinds += [Column("greedy", kind, _kind(kind)) for kind in others[: MAX_KIND_COLUMNS - 1]]
    return (
        Column("", "model", lambda v: v.label),
        *kinds,
        Column(
            "sampled", f"mean@{num_samples}", lambda v: percent(v.sampled.mean.value if v.sampled else None)
        ),
        Column("format", "%", lambda v: percent(v.overall.format_rate)),
        Column("1st box on", "object %", lambda v: percent(v.overall.first_box_on_object)),
        Column("1st box", "IoU", lambda v: _decimal(v.overall.first_box_iou, 2)),
        Column("crop", "seen px", lambda v: _crop_size(v.overall)),
        Column("crop", "tokens", lambda v: _decimal(v.overall.crop_tokens, 1)),
        Column("crops /", "question", lambda v: _decimal(v.overall.crops_per_question, 2)),
        Column("", "n", lambda v: _count(v.overall)),
    )


def cost_columns() -> tuple[Column, ...]:
    """The columns of the second table: where the model looked, what it cost, what went wrong."""
    return (
        Column("", "model", lambda v: v.label),
        Column("gold boxes", "found %", lambda v: percent(v.overall.gold_recall)),
        Column("crops with", "answer %", lambda v: percent(v.overall.crops_with_answer)),
        Column("cut off", "%", lambda v: percent(v.overall.truncation_rate)),
        Column("protocol", "errors %", lambda v: percent(v.overall.protocol_error_rate)),
        Column("tokens /", "question", lambda v: _decimal(v.overall.tokens_per_question, 1)),
        Column("seconds /", "question", lambda v: _decimal(v.overall.seconds_per_question, 2)),
    )


def rows(results: Results) -> tuple[VariantResult, ...]:
    """The rows as they are shown: models first, then the ablations, each in the order they were measured."""
    return tuple(sorted(results.variants, key=_is_ablation))


def to_text(results: Results) -> str:
    """The table with its differences, its warnings and its legend, for people at a terminal."""
    shown, variants = columns(results), rows(results)
    lines, body = _grid(shown, variants)
    for index, (variant, row) in enumerate(zip(variants, body, strict=True)):
        if _opens_ablations(variants, index):
            lines.append(f"crop commands of {_same_weights(results, variant)} answered in other ways:")
        lines.append(row)
    heads, body = _grid(cost_columns(), variants)
    lines += ["", *heads, *body]
    lines += ["", *_difference_lines(results)] if results.comparisons else []
    lines += ["", *legend(results)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_markdown(results: Results) -> str:
    """The same as Markdown, for README, MLflow and Prefect."""
    lines = [*_markdown(columns(results), results), "", *_markdown(cost_columns(), results)]
    if results.comparisons:
        lines += [
            "",
            "Differences in greedy accuracy, percentage points (paired bootstrap, 95 % interval):",
            "",
        ]
        lines += [f"- {describe(results, found)}" for found in main_comparisons(results)]
    lines += ["", *(f"{line}  " for line in legend(results))]
    return "\n".join(lines) + "\n"


def to_csv(results: Results) -> str:
    """One line per variant and group of questions (``all`` or a kind), with every number of ``Scores``."""
    names = [name for name in Scores.model_fields if name != "accuracy"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["variant", "questions", "accuracy", "accuracy_low", "accuracy_high", *names])
    for variant in results.variants:
        for group, scores in {"all": variant.overall, **variant.kinds}.items():
            interval = (scores.accuracy.value, scores.accuracy.low, scores.accuracy.high)
            writer.writerow([variant.name, group, *interval, *(getattr(scores, name) for name in names)])
    return buffer.getvalue()


def main_comparisons(results: Results) -> list[Comparison]:
    """The differences over all questions, each followed by that over the most frequent kind."""
    kinds = ("", *results.kinds[:1]) if len(results.kinds) > 1 else ("",)
    found = (
        results.comparison(overall.new, overall.old, kind)
        for overall in results.comparisons
        if not overall.kind
        for kind in kinds
    )
    return [comparison for comparison in found if comparison is not None]


def describe(results: Results, comparison: Comparison) -> str:
    """One difference in words: ``R-GRPO - SFT, all: +15.2 [+11.0, +19.3], n = 600: better``."""
    names = f"{results.label(comparison.new)} - {results.label(comparison.old)}"
    return f"{names}, {comparison.kind or 'all'}: {_points(comparison)}"


def legend(results: Results) -> list[str]:
    """What the columns mean, and a warning for every variant in which attempts failed on our side."""
    warnings = [
        f"{WARNING}: {variant.label}: {broken} attempts failed on our side: unscored, missing from its rates."
        for variant in results.variants
        if (broken := variant.overall.num_unscored + (variant.sampled.num_unscored if variant.sampled else 0))
    ]
    return [
        *warnings,
        "[ , ]: 95 % interval (Wilson; of differences: paired bootstrap over the same questions).",
        "mean@k: mean over questions of the share right among k samples at temperature 1.",
        f"1st box on object: its IoU with a gold box is above {ON_OBJECT_IOU}; no box is a miss.",
        "crop: mean region in pixels of the picture as the model sees it, and its picture tokens.",
        f"gold boxes found: an accepted box has an IoU of at least {FOUND_IOU} with it; crops with answer: "
        f"{100 * HOLDS_COVERAGE:.0f} % of a gold box lies in it.",
        f"questions {results.questions_digest[:12]}, scorer {results.scorer} {results.scorer_version}, "
        f"seed {results.seed}.",
    ]


def verdict(comparison: Comparison) -> str:
    """What the interval says: better, worse, or no clear difference."""
    if comparison.is_above_zero:
        return "better"
    return "worse" if comparison.is_below_zero else "no clear difference"


def estimate(found: Estimate) -> str:
    """A share in percent with its interval."""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def percent(share: float | None) -> str:
    """A share in percent; ``-`` where it has no meaning."""
    return _decimal(None if share is None else 100 * share, 1)


def _kind_with_interval(kind: str) -> Callable[[VariantResult], str]:
    return lambda variant: estimate(variant.kinds[kind].accuracy) if kind in variant.kinds else _NONE


def _kind(kind: str) -> Callable[[VariantResult], str]:
    return lambda variant: percent(variant.kinds[kind].accuracy.value) if kind in variant.kinds else _NONE


def _decimal(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _crop_size(scores: Scores) -> str:
    if scores.crop_width is None or scores.crop_height is None:
        return _NONE
    return f"{scores.crop_width:.1f}x{scores.crop_height:.1f}"


def _count(scores: Scores) -> str:
    broken = f" (-{scores.num_unscored})" if scores.num_unscored else ""
    return f"{scores.num_scored + scores.num_unscored}{broken}"


def _grid(shown: Sequence[Column], variants: Sequence[VariantResult]) -> tuple[list[str], list[str]]:
    """The header's lines and one line per variant, in columns of equal width."""
    cells = [[column.cell(variant) for column in shown] for variant in variants]
    widths = [
        max(len(column.group), len(column.name), *(len(row[index]) for row in cells))
        for index, column in enumerate(shown)
    ]
    heads = [
        _line([column.group for column in shown], widths),
        _line([column.name for column in shown], widths),
        "-" * (sum(widths) + 2 * (len(widths) - 1)),
    ]
    return heads, [_line(row, widths) for row in cells]


def _markdown(shown: Sequence[Column], results: Results) -> list[str]:
    return [
        "| " + " | ".join(column.title for column in shown) + " |",
        "| :-- |" + " --: |" * (len(shown) - 1),
        *("| " + " | ".join(column.cell(variant) for column in shown) + " |" for variant in rows(results)),
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, numbers to the right."""
    first, *others = cells
    return "  ".join(
        [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
    )


def _opens_ablations(variants: Sequence[VariantResult], index: int) -> bool:
    return _is_ablation(variants[index]) and (index == 0 or not _is_ablation(variants[index - 1]))


def _is_ablation(variant: VariantResult) -> bool:
    return variant.crop_source != "original"


def _same_weights(results: Results, ablation: VariantResult) -> str:
    """The label of the row that has the ablation's weights and real crops."""
    return next(
        (
            variant.label
            for variant in results.variants
            if variant.model_digest == ablation.model_digest and variant.crop_source == "original"
        ),
        ablation.model_path,
    )


def _difference_lines(results: Results) -> list[str]:
    """Differences as a block: one pair of rows per line, all questions first, then the most frequent kind."""
    found = main_comparisons(results)
    pairs = list(dict.fromkeys((comparison.new, comparison.old) for comparison in found))
    names = {pair: f"{results.label(pair[0])} - {results.label(pair[1])}" for pair in pairs}
    width = max(map(len, names.values()))
    lines = ["differences in greedy accuracy, percentage points"]
    for pair in pairs:
        parts = [f"{c.kind or 'all'} {_points(c)}".ljust(54) for c in found if (c.new, c.old) == pair]
        lines.append(f"{names[pair].ljust(width)}  {'  '.join(parts)}")
    return lines


def _points(comparison: Comparison) -> str:
    difference = comparison.difference
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"{100 * difference.value:+.1f} {interval}, n = {comparison.num_questions}: {verdict(comparison)}"
