"""Small charts as inline SVG: no library, no network, colours from the page's style sheet (light and dark).

Each chart says in words what it shows (``<title>`` and ``<desc>``), for readers who do not see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 34
_ROW_HEIGHT, _LABEL_WIDTH = 26, 170
# The style sheet has this many line colours.
NUM_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y) in order of x."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Whisker:
    """One row of a dot plot: a value with its interval."""

    label: str
    value: float
    low: float
    high: float
    is_emphasised: bool = False


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", x_label: str = "step") -> str:
    """Lines over one x axis, every value faint and a running mean strong; a figure with title and legend."""
    drawn = [one for one in series if one.points]
    if not drawn:
        raise ValueError(f"Chart {title!r} has no points.")
    x_ticks = _ticks(*_range([x for one in drawn for x, _ in one.points]))
    y_ticks = _ticks(*_range([y for one in drawn for _, y in one.points]))
    plot = _Plot(x_ticks, y_ticks)
    body = [plot.grid(x_label)]
    for index, one in enumerate(drawn):
        colour = f"s{index % NUM_COLOURS}"
        smooth = _running_mean(one.points)
        if len(one.points) > len(smooth) or smooth != one.points:
            body.append(f'<path class="raw {colour}" d="{plot.path(one.points)}"/>')
        body.append(f'<path class="line {colour}" d="{plot.path(smooth)}"/>')
        if len(one.points) == 1:
            body.append(plot.point(one.points[0], colour))
    keys = "".join(
        f'<li><span class="key s{index % NUM_COLOURS}"></span>{escape(one.label)}</li>'
        for index, one in enumerate(drawn)
    )
    legend = f'<ul class="legend">{keys}</ul>'
    words = "; ".join(_in_words(one) for one in drawn)
    caption = f"{title}, {unit}" if unit else title
    return _figure(caption, words, f"0 0 {_WIDTH} {_HEIGHT}", "".join(body), legend)


def dot_plot(title: str, rows: Sequence[Whisker], *, unit: str = "%", zero_line: bool = False) -> str:
    """One row per value with its interval; values are in ``unit``. ``zero_line`` marks 0, for differences."""
    if not rows:
        raise ValueError(f"Chart {title!r} has no rows.")
    ends = [end for row in rows for end in (row.low, row.high)] + ([0.0] if zero_line else [])
    ticks = _ticks(min(ends), max(ends))
    height = len(rows) * _ROW_HEIGHT + 34
    left, right = _LABEL_WIDTH, _WIDTH - _RIGHT
    scale = (right - left) / (ticks[-1] - ticks[0])

    def x(value: float) -> float:
        return left + (value - ticks[0]) * scale

    body = []
    for tick in ticks:
        kind = "axis" if zero_line and tick == 0 else "grid"
        body.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{height - 24}"/>')
        body.append(f'<text class="tick middle" x="{x(tick):.1f}" y="{height - 8}">{_number(tick)}</text>')
    for index, row in enumerate(rows):
        y = 4 + (index + 0.5) * _ROW_HEIGHT
        strong = " strong" if row.is_emphasised else ""
        body.append(f'<text class="label{strong}" x="0" y="{y + 4:.1f}">{escape(row.label)}</text>')
        body.append(f'<line class="whisker" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>')
        body.append(f'<circle class="dot{strong}" cx="{x(row.value):.1f}" cy="{y}" r="4.5"/>')
    words = "; ".join(f"{row.label}: {row.value:.1f} [{row.low:.1f}, {row.high:.1f}] {unit}" for row in rows)
    return _figure(f"{title}, {unit}", words, f"0 0 {_WIDTH} {height}", "".join(body), "")


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """One horizontal bar per label, with its value and its share of the sum; values are counts."""
    if not bars:
        raise ValueError(f"Chart {title!r} has no bars.")
    most, total = max(value for _, value in bars) or 1.0, sum(value for _, value in bars) or 1.0
    width = _WIDTH - _LABEL_WIDTH - 110
    body = []
    for index, (label, value) in enumerate(bars):
        y = index * _ROW_HEIGHT
        end = _LABEL_WIDTH + width * value / most
        body.append(f'<text class="label" x="0" y="{y + 17}">{escape(label)}</text>')
        body.append(
            f'<rect class="column" x="{_LABEL_WIDTH}" y="{y + 4}" height="18" '
            f'width="{end - _LABEL_WIDTH:.1f}"/>'
        )
        body.append(f'<text x="{end + 8:.1f}" y="{y + 17}">{value:g} ({value / total:.0%})</text>')
    words = "; ".join(f"{label}: {value:g}" for label, value in bars)
    return _figure(title, words, f"0 0 {_WIDTH} {len(bars) * _ROW_HEIGHT}", "".join(body), "")


class _Plot:
    """The plotting area: maps values to pixels."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> None:
        self._x_ticks, self._y_ticks = x_ticks, y_ticks

    def x(self, value: float) -> float:
        span = self._x_ticks[-1] - self._x_ticks[0]
        return _LEFT + (value - self._x_ticks[0]) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = self._y_ticks[-1] - self._y_ticks[0]
        return _HEIGHT - _BOTTOM - (value - self._y_ticks[0]) / span * (_HEIGHT - _TOP - _BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)

    def point(self, point: tuple[float, float], colour: str) -> str:
        """A lone value, which no line shows."""
        x, y = point
        return (
            f'<circle class="{colour}" fill="currentColor" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4"/>'
        )

    def grid(self, x_label: str) -> str:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = []
        for tick in self._y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_number(tick)}</text>')
        for tick in self._x_ticks:
            parts.append(
                f'<text class="tick middle" x="{self.x(tick):.1f}" y="{bottom + 16}">{_number(tick)}</text>'
            )
        parts.append(f'<text class="tick end" x="{right}" y="{_HEIGHT - 4}">{escape(x_label)}</text>')
        return "".join(parts)


def _figure(title: str, words: str, view_box: str, body: str, legend: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg role="img" viewBox="{view_box}" aria-label="{escape(f"{title}. {words}", quote=True)}">'
        f"{body}</svg>{legend}</figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest; a flat line gets room around it."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose low and high."""
    low, high = _range([low, high])
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _running_mean(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Mean over a window of a fifteenth of the points, centred; few points are left as they are."""
    reach = len(points) // 30
    if reach == 0:
        return tuple(points)
    means = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - reach) : index + reach + 1]]
        means.append((x, sum(window) / len(window)))
    return tuple(means)


def _in_words(series: Series) -> str:
    values = [y for _, y in series.points]
    return (
        f"{series.label}: from {_number(values[0])} to {_number(values[-1])}, "
        f"lowest {_number(min(values))}, highest {_number(max(values))}"
    )


def _number(value: float) -> str:
    return f"{value:.4g}"
