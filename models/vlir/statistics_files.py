"""Figure 3 of the paper for a set of our own, as files: table (Markdown, CSV) and plot (SVG, PNG).

The same statistics give the same bytes. Matplotlib is heavy: call it in a child process.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.analyses.tables import to_csv
from models.rundir import write_atomically
from models.vlir.statistics import Statistics

# Where a set keeps these files.
STATISTICS = "statistics"
NAME = "figure3"
_PARTS = {
    "crops_per_image": "crops per image",
    "crops_per_record": "crops per rationale",
    "records_per_source": "rationales by source",
    "crops_per_size": "crops by share of the picture",
}
_SIZES = {
    "very_small": "very small (below 5 %)",
    "small": "small (5 to 25 %)",
    "medium": "medium (25 to 50 %)",
    "large": "large (50 % or more)",
}


def write_statistics(statistics: Statistics, folder: Path) -> list[str]:
    """Write ``figure3.csv``, ``.md``, ``.svg`` and ``.png`` into ``folder``; the names that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(statistics)
    write_atomically(folder / f"{NAME}.csv", to_csv(rows))
    write_atomically(folder / f"{NAME}.md", _to_markdown(rows))
    return [f"{NAME}.csv", f"{NAME}.md", *_plot(statistics, folder)]


def table(statistics: Statistics) -> list[dict[str, object]]:
    """A row per bar: the part of the figure, the bar's name, its count, and its share of the part."""
    counts = statistics.to_dict()
    return [
        {"part": title, "value": _SIZES.get(value, value), "count": count, "share": count / total}
        for part, title in _PARTS.items()
        for total in [max(1, sum(counts[part].values()))]
        for value, count in counts[part].items()
    ]


def _to_markdown(rows: list[dict[str, object]]) -> str:
    lines = ["| part | value | count | share |", "|---|---|---:|---:|"]
    lines += [
        f"| {row['part']} | {str(row['value']).replace('|', chr(92) + '|')} | {row['count']} | "
        f"{row['share']:.1%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _plot(statistics: Statistics, folder: Path) -> list[str]:
    """The three panels of Figure 3: crops per image, samples by source, crops by size."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from models.plot_style import BLUE, GREEN, ORANGE, STYLE, save

    counts = statistics.to_dict()
    sizes = {_SIZES[name]: count for name, count in counts["crops_per_size"].items()}
    num_images = statistics.crops_per_image.total()
    panels: list[tuple[str, Mapping[str, int], str]] = [
        (f"crops per image (n = {num_images})", counts["crops_per_image"], BLUE),
        (f"rationales by source (n = {statistics.num_records})", counts["records_per_source"], GREEN),
        (f"crops by size (n = {statistics.num_crops})", sizes, ORANGE),
    ]
    num_bars = max(len(bars) for _, bars, _ in panels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.24 * num_bars + 1.6), layout="constrained")
        for axis, (title, bars, colour) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            _draw_bars(axis, title, bars, colour)
        return save(figure, folder, NAME)


def _draw_bars(axis: Any, title: str, bars: Mapping[str, int], colour: str) -> None:
    drawn = axis.barh(range(len(bars)), list(bars.values()), color=colour)
    axis.bar_label(drawn, padding=2, fontsize=8)
    # A source may be called anything; a dollar sign would start a formula.
    axis.set_yticks(range(len(bars)), list(bars), parse_math=False)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.grid(False, axis="y")
    axis.set_title(title)
