"""The sections of the report of a pipeline or an evaluation, as HTML."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from models.evaluation import table
from models.evaluation.charts import Series, Whisker, bar_chart, dot_plot, line_chart
from models.evaluation.report_html import (
    bar_cell,
    bullet_list,
    cell,
    duration,
    facts,
    figures,
    tile,
    warning,
)
from models.evaluation.report_html import table as html_table
from models.evaluation.report_inputs import Check, Fact, MetricLine, Panel, Promotion, ReportInputs, StageTime
from models.evaluation.results import Comparison, Results, VariantResult

# The rows whose accuracies stand beside the headline.
_TILES = ("base_direct", "sft", "rgrpo", "champion")
# Figure 3 of the paper: the counts of the data manifest, and what each shows.
_FIGURE_3 = {
    "crops_per_image": "Crops per picture",
    "crops_per_record": "Crops per rationale",
    "records_per_source": "Rationales by source",
    "crops_per_size": "Crops by share of the picture",
    "records_per_kind": "Rationales by kind of question",
}


# The paper's classes of a crop's share of the picture (4.2), in order.
_SIZES = {
    "very_small": "very small, below 5 %",
    "small": "small, 5 to 25 %",
    "medium": "medium, 25 to 50 %",
    "large": "large, 50 % or more",
}


def outcome(inputs: ReportInputs, found: Comparison) -> str:
    """Better or not, by how much, and what became of the model."""
    new, old = inputs.results.label(found.new), inputs.results.label(found.old)
    words = {
        "better": f"{new} is better than {old}.",
        "worse": f"{new} is worse than {old}.",
        "no clear difference": f"No clear difference between {new} and {old}.",
    }[table.verdict(found)]
    tiles = [row for name in _TILES if (row := inputs.results.variant(name))]
    return (
        f'<div class="hero {_verdict_class(found)}"><h2>{escape(words)}</h2>'
        f'<p><span class="delta">{100 * found.difference.value:+.1f}</span> points of accuracy, '
        f"95 % interval {_interval(found)}, on the same {found.num_questions} questions.</p></div>"
        + (f"<p>{escape(inputs.trained)}</p>" if inputs.trained else "")
        + f'<div class="tiles">{"".join(tile(row.label, row.overall.accuracy) for row in tiles)}</div>'
        + (_promotion(inputs.promotion) if inputs.promotion else "")
    )


def results(found: Results) -> str:
    """The final table, its warnings and legend, the accuracies as a plot, and the differences."""
    first, *others = table.columns(found)
    legend = table.legend(found)
    warnings = [line for line in legend if line.startswith(table.WARNING)]
    explained = " ".join(line for line in legend if line not in warnings)
    return (
        "".join(map(warning, warnings))
        + html_table(
            "Held-out questions, the same ones for every row",
            [column.title for column in (first, *others)],
            [(first.cell(row), *(cell(column.cell(row)) for column in others)) for row in table.rows(found)],
        )
        + f'<p class="small">{escape(explained)}</p>'
        + dot_plot("Greedy accuracy on all questions, with its 95 % interval", _whiskers(table.rows(found)))
        + _differences(found)
    )


def training(inputs: ReportInputs) -> str:
    """Reward and guard curves of R-GRPO, then the loss of SFT; nothing when nothing was trained."""
    stages = ((inputs.rgrpo_metrics, inputs.rgrpo_panels), (inputs.sft_metrics, inputs.sft_panels))
    charts = "".join(_chart(panel, lines) for lines, panels in stages for panel in panels)
    return f'<div class="charts">{charts}</div>' if charts else ""


def data(inputs: ReportInputs) -> str:
    """Statistics of the rationales (Figure 3 of the paper), and the verdict of the validation gate."""
    return facts(inputs.data) + figure_3(inputs.statistics or {}) + validation(inputs.validation)


def validation(checks: Sequence[Check]) -> str:
    """Every expectation of the gate with its bounds and what was found; nothing when there are none."""
    if not checks:
        return ""
    num_failed = sum(not check.passed for check in checks)
    num_skipped = sum(check.skipped for check in checks)
    verdict = f"{num_failed} failed" if num_failed else "every expectation held"
    skipped = f", {num_skipped} skipped" if num_skipped else ""
    rows = [
        (
            check.name,
            cell(check.bounds, "text"),
            cell(check.observed, "text"),
            _result_cell(check),
            cell(str(check.num_unexpected)),
            cell(", ".join(check.examples), "text"),
            cell(check.detail, "text"),
        )
        for check in checks
    ]
    head = ["expectation", "expected", "observed", "verdict", "unexpected", "examples", "detail"]
    return html_table(f"Validation of the rationales: {verdict}{skipped}", head, rows)


def figure_3(statistics: Mapping[str, Mapping[str, int]]) -> str:
    """The counts of Figure 3 of the paper as bars; nothing when nothing was counted."""
    charts = "".join(
        bar_chart(title, [(_SIZES.get(label, label), value) for label, value in _in_order(statistics[name])])
        for name, title in _FIGURE_3.items()
        if statistics.get(name)
    )
    if not charts:
        return ""
    return f'<h3>The rationales, as in Figure 3 of the paper</h3><div class="charts">{charts}</div>'


def time(stages: Sequence[StageTime], rgrpo: Sequence[MetricLine], *, price: float) -> str:
    """What each stage took and cost; nothing when no times were kept. ``price`` is per process hour."""
    if not stages:
        return ""
    longest = max(stage.seconds for stage in stages) or 1.0
    head = ["stage", "time", "share", "processes", "process hours", *(["cost"] if price else []), "remark"]
    rows = [
        (
            stage.name,
            cell(duration(stage.seconds)),
            bar_cell(stage.seconds / longest),
            cell(str(stage.num_processes)),
            cell(f"{stage.process_hours:.2f}"),
            *([cell(f"{price * stage.process_hours:.2f}")] if price else []),
            cell(stage.remark, "text"),
        )
        for stage in stages
    ]
    hours = sum(stage.process_hours for stage in stages)
    cost = f", cost {price * hours:.2f} at {price:g} per process hour" if price else ""
    caption = f"{duration(sum(stage.seconds for stage in stages))} of work, some of it side by side; "
    return html_table(f"{caption}{hours:.2f} process hours{cost}", head, rows) + _rgrpo_time(rgrpo)


def origin(found: Sequence[Fact]) -> str:
    """Where everything comes from."""
    return facts(found) or "<p>Nothing is known about where this comes from.</p>"


def drawn(inputs: ReportInputs) -> str:
    """The figures that other parts of the run have drawn."""
    return figures(inputs.figures)


def _promotion(promotion: Promotion) -> str:
    state = "promoted to champion" if promotion.is_promoted else "not promoted"
    title = f"<h3>Version {escape(promotion.version)}: {state}</h3>"
    return f'<div class="decision">{title}{bullet_list(promotion.reasons)}</div>'


def _result_cell(check: Check) -> str:
    if check.skipped:
        return cell("skipped", "text unclear")
    return cell("held", "text good") if check.passed else cell("failed", "text bad")


def _in_order(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counts as people expect them: numbers by value, classes of size by size, others by their count."""
    sizes = list(_SIZES)
    if all(label.isdigit() for label in counts):
        return sorted(counts.items(), key=lambda item: int(item[0]))
    if set(counts) <= set(sizes):
        return sorted(counts.items(), key=lambda item: sizes.index(item[0]))
    return sorted(counts.items(), key=lambda item: -item[1])


def _rgrpo_time(lines: Sequence[MetricLine]) -> str:
    """Where R-GRPO's steps spent their time, from its own metrics."""
    last = {line["step"]: line for line in lines}  # the last line of a step counts
    spent: dict[str, float] = {}
    for line in last.values():
        for name, value in line.items():
            if name.startswith("time/") and name.endswith("_seconds"):
                part = name.removeprefix("time/").removesuffix("_seconds")
                spent[part] = spent.get(part, 0.0) + value
    if not spent:
        return ""
    found = [Fact(part, duration(seconds)) for part, seconds in spent.items()]
    return f"<h3>Inside the steps of R-GRPO</h3>{facts(found)}"


def _differences(found: Results) -> str:
    rows = [
        (
            f"{found.label(c.new)} - {found.label(c.old)}",
            cell(c.kind or "all", "text"),
            cell(f"{100 * c.difference.value:+.1f}"),
            cell(_interval(c)),
            cell(str(c.num_questions)),
            f'<td class="text {_verdict_class(c)}">{table.verdict(c)}</td>',
        )
        for c in table.main_comparisons(found)
    ]
    head = ["rows", "questions", "difference", "95 % interval", "number", "verdict"]
    caption = "Differences in greedy accuracy, percentage points, paired bootstrap over the same questions"
    return html_table(caption, head, rows) if rows else ""


def _whiskers(rows: Iterable[VariantResult]) -> list[Whisker]:
    found = ((row.label, row.overall.accuracy) for row in rows)
    return [Whisker(label, 100 * one.value, 100 * one.low, 100 * one.high) for label, one in found]


def _chart(panel: Panel, lines: Sequence[MetricLine]) -> str:
    """A panel's chart; nothing when the stage logged none of its metrics. The last line of a step counts."""
    logged = sorted({name for line in lines for name in line})
    series = []
    for wanted, label in panel.series:
        below = [(name, name.removeprefix(wanted)) for name in logged if name.startswith(wanted)]
        for name, shown in below if wanted.endswith("/") else [(wanted, label)]:
            points = {float(line["step"]): float(line[name]) for line in lines if name in line}
            if points:
                series.append(Series(shown, tuple(sorted(points.items()))))
    return line_chart(panel.title, series, unit=panel.unit) if series else ""


def _interval(comparison: Comparison) -> str:
    return f"{100 * comparison.difference.low:+.1f} to {100 * comparison.difference.high:+.1f}"


def _verdict_class(comparison: Comparison) -> str:
    if comparison.is_above_zero:
        return "good"
    return "bad" if comparison.is_below_zero else "unclear"
