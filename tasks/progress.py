"""Where a run is, for a person: a live display on a terminal, plain lines everywhere else.

Stages report what they write to ``metrics.jsonl``; ``progress/done`` and ``progress/total`` make the bar. The
board also keeps how long each stage took, and whether its result came from the cache.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0
_BAR_WIDTH = 24

# The stages of a pipeline in the order in which a person thinks of them.
STAGES = (
    "build_vlir",
    "validate",
    "sft",
    "rgrpo",
    "more_sft",
    "no_sft",
    "evaluate",
    "register",
    "promote",
    "report",
)
# What is fetched from a store before a stage, in megabytes.
FETCH = "fetch MB"
# The numbers worth a glance while a stage runs.
_SHOWN = (
    ("sft/loss", "loss"),
    ("sft/validation_loss", "validation loss"),
    ("rgrpo/reward", "reward"),
    ("rgrpo/accuracy", "accuracy"),
    ("rgrpo/mismatch_kl", "mismatch KL"),
)

logger = logging.getLogger(__name__)
# Where a worker runs a flow, Prefect adds its handlers to our loggers but leaves their level to the root's.
logger.setLevel(logging.INFO)


@dataclass
class Row:
    """One stage on the board. Times are seconds of the monotonic clock."""

    label: str
    began: float
    ended: float | None = None
    is_cached: bool = False
    done: float = 0.0
    total: float = 0.0
    shown: dict[str, float] = field(default_factory=dict)
    written: float = 0.0
    # When the first step was told of, and which: models are loaded and sources read before, and a stage that
    # goes on does not begin at 0.
    first: tuple[float, float] | None = None

    def update(self, line: Mapping[str, Any]) -> None:
        """Take what one line of metrics says about it."""
        done = float(line.get("progress/done", self.done))
        if done and (self.first is None or done < self.done):
            self.first = time.monotonic(), done
        self.done = done
        self.total = float(line.get("progress/total", self.total))
        self.shown |= {name: float(line[key]) for key, name in _SHOWN if key in line}

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self.ended if self.ended is not None else time.monotonic()) - self.began

    def rate(self) -> str:
        """Steps per second and the time that is left, once they can be told."""
        if self.first is None or self.ended is not None:
            return ""
        began, first = self.first
        if self.done == first:
            return ""
        per_second = (self.done - first) / max(time.monotonic() - began, 1e-6)
        left = (self.total - self.done) / per_second if self.total else 0.0
        return f"{per_second:.1f}/s, {duration(left)} left" if left > 0 else f"{per_second:.1f}/s"

    def numbers(self) -> str:
        """The current loss, reward and so on."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.shown.items())

    def line(self, place: str) -> str:
        """The row as one line of text."""
        if self.ended is not None:
            how = "from the cache" if self.is_cached else f"done in {duration(self.seconds)}"
            return f"{place} {self.label}: {how}" + (f", {self.numbers()}" if self.shown else "")
        share = f"{self.done:g}/{self.total:g} ({self.done / self.total:.0%})" if self.total else "running"
        return ", ".join(
            part for part in (f"{place} {self.label}: {share}", self.rate(), self.numbers()) if part
        )


class Board:
    """The stages of one run. ``write`` gets plain lines; a live display is drawn by :meth:`live` instead."""

    def __init__(self, write: Callable[[str], None], stages: tuple[str, ...] = STAGES) -> None:
        self.rows: dict[str, Row] = {}
        self._write = write
        self._stages = stages
        self._is_live = False

    @contextmanager
    def stage(self, label: str) -> Iterator[Row]:
        """A stage around a block."""
        row = self.rows[label] = Row(label, began=time.monotonic())
        yield row
        row.ended = time.monotonic()
        self._say(row)

    def start(self, label: str) -> None:
        """The work of a stage starts now: it is not cached, and no longer waits for cores."""
        if label in self.rows:
            self.rows[label].is_cached = False
            self.rows[label].began = time.monotonic()

    def update(self, label: str, line: Mapping[str, Any]) -> None:
        """A running stage wrote a line of metrics."""
        row = self.rows.get(label)
        if row is None:
            return
        row.update(line)
        if time.monotonic() - row.written >= SECONDS_BETWEEN_LINES:
            self._say(row)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw the board on the terminal for the time of a block, instead of writing lines."""
        self._is_live = True
        console = Console(file=sys.stderr)
        with Live(console=console, get_renderable=self.table, refresh_per_second=4, transient=True):
            yield
        console.print(self.table())

    def table(self) -> Table:
        """All stages so far, one row each."""
        table = Table.grid(padding=(0, 2))
        for row in list(self.rows.values()):
            share = row.done / row.total if row.total else 0.0
            share = 1.0 if row.ended is not None else share
            filled = round(_BAR_WIDTH * min(share, 1.0))
            bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
            state = "cached" if row.is_cached and row.ended is not None else duration(row.seconds)
            table.add_row(self._place(row), row.label, bar, f"{share:.0%}", state, row.rate(), row.numbers())
        return table

    def _say(self, row: Row) -> None:
        row.written = time.monotonic()
        if not self._is_live:
            self._write(row.line(self._place(row)))

    def _place(self, row: Row) -> str:
        known = self._stages.index(row.label) + 1 if row.label in self._stages else len(self._stages)
        return f"[{known}/{len(self._stages)}]"


_board = Board(logger.info)


def board() -> Board:
    """The board of this process: plain lines in the log, unless a command line chose another."""
    return _board


def use(chosen: Board) -> None:
    """Make this the board of the process."""
    global _board
    _board = chosen


def show_megabytes(done: int, total: int) -> None:
    """Show how many bytes of a download are here."""
    _board.update(FETCH, {"progress/done": done // 1_000_000, "progress/total": -(-total // 1_000_000)})


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
