"""The figures, drawn by matplotlib, as SVG and PNG. Imported only where something is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from models.analyses.figure4 import Point
from models.analyses.figure5 import CHAINS, SEEN, CurvePoint
from models.analyses.measuring import ALL
from models.analyses.table2 import LABELS, Row
from models.config import CorruptionWay
from models.plot_style import BLUE, GREEN, GREY, ORANGE, STYLE, save

_WAYS: Mapping[CorruptionWay, tuple[str, str, str]] = {
    "replace": ("replaced boxes", BLUE, "o"),
    "perturb": ("perturbed boxes", ORANGE, "s"),
}
_CHAINS = dict(zip(CHAINS, (BLUE, ORANGE, GREEN), strict=True))


def save_figure4(points: Sequence[Point], folder: Path) -> list[str]:
    """Accuracy against measured grounding accuracy: a panel per set and kind of question, a line per way."""
    panels = list(dict.fromkeys((point.set, point.questions) for point in points))
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * num_columns + 0.4, 2.9 * num_rows + 0.4), layout="constrained")
        axes = figure.subplots(num_rows, num_columns, squeeze=False)
        for axis, (name, questions) in zip(axes.flat, panels, strict=False):
            _draw_points(axis, [one for one in points if (one.set, one.questions) == (name, questions)])
            num_questions = max(
                one.num_scored for one in points if (one.set, one.questions) == (name, questions)
            )
            title = name if questions == ALL else f"{name}: {questions}"
            axis.set_title(f"{title} (n = {num_questions})")
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("accuracy, %")
        figure.supxlabel("grounding accuracy, % of first crops", fontsize=9)
        axes.flat[0].legend(loc="upper left")
        return save(figure, folder, "figure4")


def save_figure5(points: Sequence[CurvePoint], folder: Path) -> list[str]:
    """Attention on image and crops along the answer: relative position on the left, tokens on the right."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axis, kind, scale in ((left, "relative", 100.0), (right, "absolute", 1.0)):
            for chain, colour in _CHAINS.items():
                found = [point for point in points if (point.chain, point.axis) == (chain, kind)]
                _draw_curve(axis, [one for one in found if one.part == SEEN], colour, scale, label=chain)
                if chain == CHAINS[0]:
                    only = [one for one in found if one.part == "image"]
                    _draw_curve(axis, only, colour, scale, label=f"{chain}: image alone", linestyle="--")
            axis.set_ylim(bottom=0)
        left.set_xlim(0, 100)
        left.set_xlabel("position in the answer, % of its tokens")
        left.set_ylabel("attention on image and crops, %")
        right.set_xlim(left=0)
        right.set_xlabel("tokens written before")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        return save(figure, folder, "figure5")


def save_table2(rows: Sequence[Row], folder: Path) -> list[str]:
    """Accuracy with its interval, a panel per set: the whole set, the full model marked by a line."""
    panels = list(dict.fromkeys(row.set for row in rows))
    variants = [name for name in LABELS if any(row.variant == name for row in rows)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(panels) + 2.8, 0.34 * len(variants) + 1.0), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, name in zip(axes, panels, strict=True):
            found = {row.variant: row for row in rows if (row.set, row.questions) == (name, ALL)}
            _draw_intervals(axis, [found[variant] for variant in variants])
            axis.set_title(name)
            axis.set_xlabel("accuracy, %")
        axes[0].set_yticks(range(len(variants)), [LABELS[variant] for variant in variants])
        axes[0].invert_yaxis()
        return save(figure, folder, "table2")


def _draw_points(axis: Any, points: Sequence[Point]) -> None:
    for way, (label, colour, marker) in _WAYS.items():
        found = sorted((one for one in points if one.way == way), key=lambda one: one.grounding.value)
        if not found:
            continue
        x = [100 * one.grounding.value for one in found]
        axis.fill_between(
            x,
            [100 * one.accuracy.low for one in found],
            [100 * one.accuracy.high for one in found],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axis.plot(
            x, [100 * one.accuracy.value for one in found], color=colour, marker=marker, label=label, ms=4
        )
    own = next(one for one in points if one.level is None)
    axis.plot(
        [100 * own.grounding.value],
        [100 * own.accuracy.value],
        "D",
        color=GREY,
        ms=5,
        label="the model's own boxes",
        zorder=3,
    )


def _draw_curve(
    axis: Any, points: Sequence[CurvePoint], colour: str, scale: float, *, label: str, linestyle: str = "-"
) -> None:
    x = [scale * one.position for one in points]
    axis.fill_between(
        x,
        [100 * one.low for one in points],
        [100 * one.high for one in points],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )
    shares = [100 * one.share for one in points]
    axis.plot(x, shares, color=colour, linestyle=linestyle, label=label, linewidth=1.5)


def _draw_intervals(axis: Any, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        is_full = row.variant == "full"
        colour = BLUE if is_full else GREY
        found = row.accuracy
        axis.plot([100 * found.low, 100 * found.high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axis.plot([100 * found.value], [place], "o", color=colour, ms=6, clip_on=False, zorder=3)
        if is_full:
            axis.axvline(100 * found.value, color=BLUE, linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 100)
    axis.grid(False, axis="y")
