"""The sections of a report as HTML. All text that comes from outside is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

from models.evaluation import table
from models.evaluation.charts import Series, Whisker, dot_plot, line_chart
from models.evaluation.report_inputs import Fact, MetricLine, Panel, ReportInputs, StageTime
from models.evaluation.results import Comparison, Results, VariantResult

# The rows whose accuracies stand beside the headline.
_TILES = ("base_direct", "sft", "rgrpo")
# Columns of words; all others hold numbers and are aligned to the right.
_TEXT = frozenset({"questions", "verdict", "detail", "share", "remark"})


def outcome(inputs: ReportInputs, found: Comparison) -> str:
    """Better or not, by how much, and what became of the model."""
    new, old = inputs.results.label(found.new), inputs.results.label(found.old)
    words = {
        "better": f"{new} is better than {old}.",
        "worse": f"{new} is worse than {old}.",
        "no clear difference": f"No clear difference between {new} and {old}.",
    }[table.verdict(found)]
    tiles = [row for name in _TILES if (row := inputs.results.variant(name))]
    promotion = inputs.promotion
    state = "promoted to champion" if promotion.is_promoted else "not promoted"
    return (
        f'<p class="verdict {_verdict_class(found)}">{escape(words)}</p>'
        f'<p class="headline"><strong>{100 * found.difference.value:+.1f}</strong> points of accuracy, '
        f"95 % interval {_interval(found)}, on the same {found.num_questions} questions.</p>"
        f'<div class="tiles">{"".join(map(_tile, tiles))}</div>'
        f"<h3>Version {escape(promotion.version)}: {state}</h3>"
        f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in promotion.reasons)}</ul>"
    )


def results(found: Results) -> str:
    """The final table, its warnings and legend, the accuracies as a plot, and the differences."""
    first, *others = table.columns(found)
    legend = table.legend(found)
    warnings = [line for line in legend if line.startswith(table.WARNING)]
    explained = " ".join(line for line in legend if line not in warnings)
    return (
        "".join(f'<p class="warning">{escape(line)}</p>' for line in warnings)
        + _table(
            "Held-out questions, the same ones for every row",
            [column.title for column in (first, *others)],
            [(first.cell(row), *(_cell(column.cell(row)) for column in others)) for row in table.rows(found)],
        )
        + f'<p class="small">{escape(explained)}</p>'
        + dot_plot("Greedy accuracy on all questions, with its 95 % interval", _whiskers(table.rows(found)))
        + _differences(found)
    )


def training(inputs: ReportInputs) -> str:
    """Reward and guard curves of R-GRPO, then the loss of SFT."""
    stages = ((inputs.rgrpo_metrics, inputs.rgrpo_panels), (inputs.sft_metrics, inputs.sft_panels))
    charts = "".join(_chart(panel, lines) for lines, panels in stages for panel in panels)
    return f'<div class="charts">{charts}</div>' if charts else "<p>This run logged no training metrics.</p>"


def data(inputs: ReportInputs) -> str:
    """Statistics of the rationales, and the verdict of the validation gate."""
    num_failed = sum(not check.passed for check in inputs.validation)
    verdict = f"{num_failed} failed" if num_failed else "every expectation held"
    rows = [
        (
            check.name,
            '<td class="text good">held</td>' if check.passed else '<td class="text bad">failed</td>',
            _cell(check.detail, "text"),
        )
        for check in inputs.validation
    ]
    checks = _table(f"Validation of the rationales: {verdict}", ["expectation", "verdict", "detail"], rows)
    return facts(inputs.data) + (checks if rows else "<p>This run validated no rationales.</p>")


def time(stages: Sequence[StageTime]) -> str:
    """Where the minutes went."""
    if not stages:
        return "<p>This run kept no times.</p>"
    longest = max(stage.seconds for stage in stages) or 1.0
    rows = [
        (
            stage.name,
            _cell(_duration(stage.seconds)),
            f'<td class="bar"><span style="width:{100 * stage.seconds / longest:.1f}%"></span></td>',
            _cell(stage.remark, "text"),
        )
        for stage in stages
    ]
    total = _duration(sum(stage.seconds for stage in stages))
    return _table(f"{total} of work, some of it side by side", ["stage", "time", "share", "remark"], rows)


def facts(found: Sequence[Fact]) -> str:
    """Names and values; nothing when there are none."""
    items = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}"
        + (f' <span class="small">{escape(fact.remark)}</span>' if fact.remark else "")
        + "</dd></div>"
        for fact in found
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _differences(found: Results) -> str:
    rows = [
        (
            f"{found.label(c.new)} - {found.label(c.old)}",
            _cell(c.kind or "all", "text"),
            _cell(f"{100 * c.difference.value:+.1f}"),
            _cell(_interval(c)),
            _cell(str(c.num_questions)),
            f'<td class="text {_verdict_class(c)}">{table.verdict(c)}</td>',
        )
        for c in table.main_comparisons(found)
    ]
    head = ["rows", "questions", "difference", "95 % interval", "number", "verdict"]
    caption = "Differences in greedy accuracy, percentage points, paired bootstrap over the same questions"
    return _table(caption, head, rows) if rows else ""


def _table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A table that scrolls by itself when it is too wide. A row is its name and then finished cells."""
    top = "".join(
        f'<th scope="col" class="text">{escape(name)}</th>'
        if name in _TEXT
        else f'<th scope="col">{escape(name)}</th>'
        for name in head
    )
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, *cells in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, kind: Literal["", "text"] = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _tile(row: VariantResult) -> str:
    accuracy = row.overall.accuracy
    return (
        f'<div class="tile"><span>{escape(row.label)}</span>'
        f"<strong>{table.percent(accuracy.value)} %</strong>"
        f'<span class="small">{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}</span></div>'
    )


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


def _verdict_class(comparison: Comparison) -> Literal["good", "bad", "unclear"]:
    if comparison.is_above_zero:
        return "good"
    return "bad" if comparison.is_below_zero else "unclear"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
