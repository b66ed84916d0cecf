"""Whether a cost grows linearly: points, the line through them, and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Seconds per unit at the largest size over those at the smallest; linear cost with a fixed part is below 1.
MAX_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Line:
    """``seconds`` measured at each of ``sizes``, both ascending by size; ``name`` says what was varied."""

    name: str
    unit: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Seconds per unit, by least squares."""
        return float(np.polyfit(self.sizes, self.seconds, 1)[0])

    @property
    def fixed(self) -> float:
        """Seconds at size zero, by least squares."""
        return float(np.polyfit(self.sizes, self.seconds, 1)[1])

    @property
    def r_squared(self) -> float:
        """Share of the variance that the straight line explains."""
        found = np.asarray(self.seconds)
        left = found - np.polyval([self.slope, self.fixed], self.sizes)
        return float(1 - (left**2).sum() / ((found - found.mean()) ** 2).sum())

    @property
    def growth(self) -> float:
        """Seconds per unit at the largest size over those at the smallest."""
        return (self.seconds[-1] / self.sizes[-1]) / (self.seconds[0] / self.sizes[0])

    @property
    def is_linear(self) -> bool:
        """No unit of the largest size costs much more than one of the smallest."""
        return self.growth <= MAX_GROWTH

    def row(self) -> str:
        """A line of a table; see :func:`header`."""
        points = "  ".join(
            f"{size:g}: {seconds:.3g}" for size, seconds in zip(self.sizes, self.seconds, strict=True)
        )
        line = f"{self.fixed:8.3f} + {self.slope:.2g} n"
        return f"{self.name:32}{line:>22}{self.r_squared:8.3f}{self.growth:8.2f}  {points}"

    def to_json(self) -> dict[str, object]:
        """Everything, for the file of results."""
        return {
            "name": self.name,
            "unit": self.unit,
            "sizes": self.sizes,
            "seconds": self.seconds,
            "slope": self.slope,
            "fixed": self.fixed,
            "r_squared": self.r_squared,
            "growth": self.growth,
            "limit": MAX_GROWTH,
        }


def header() -> str:
    """The head of the table of lines."""
    return f"{'seconds against':32}{'line':>22}{'R2':>8}{'growth':>8}  points"


def plot(lines: Sequence[Line], folder: Path, name: str) -> list[str]:
    """One panel per unit, measured points and their lines; returns the names of the files."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    from models.plot_style import BLUE, GREEN, ORANGE, STYLE, save

    with context(STYLE):
        units = list(dict.fromkeys(line.unit for line in lines))
        figure = Figure(figsize=(3.4 * len(units), 2.8), layout="constrained")
        for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
            panel = [line for line in lines if line.unit == unit]
            for line, color in zip(panel, (BLUE, ORANGE, GREEN), strict=False):
                ends = np.asarray([0.0, line.sizes[-1]])
                axes.plot(ends, line.fixed + line.slope * ends, color=color, linewidth=1)
                axes.plot(line.sizes, line.seconds, "o", color=color, markersize=4, label=line.name)
            axes.set(xlabel=unit, ylabel="seconds per step", xlim=(0, None), ylim=(0, None))
            axes.legend(fontsize=7)
        return save(figure, folder, name)
