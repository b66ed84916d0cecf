"""How every figure looks and is saved. Imported only where something is drawn: matplotlib is heavy."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FORMATS = ("svg", "png")
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # The same data gives the same file: no random ids, no date.
    "svg.hashsalt": "vlm-r3",
    "svg.fonttype": "none",
}
_DPI = 160


def save(figure: Figure, folder: Path, name: str) -> list[str]:
    """Save the figure in every format and return the names of the files."""
    names = [f"{name}.{kind}" for kind in FORMATS]
    figure.savefig(folder / names[0], metadata={"Date": None})
    figure.savefig(folder / names[1], dpi=_DPI)
    return names
