"""The rows that were asked so far, on disk: what an interruption leaves, and what ranks give each other."""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from models.evaluation.ranks import Share

# A file is closed after so many rows, or so many seconds: what a killed process loses at most.
_ROWS_PER_FILE = 64
_SECONDS_PER_FILE = 30.0
_SECONDS_BETWEEN_LOOKS = 0.2

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class RowFiles(Generic[RowT]):
    """How rows of one kind are read and written as a Parquet file, and which of them we broke."""

    read: Callable[[Path], list[RowT]]
    write: Callable[[Path, Iterable[RowT]], int]
    is_broken: Callable[[RowT], bool]


@dataclass(slots=True)
class Ledger(Generic[RowT]):
    """A folder of small files. Every rank adds files of its own and reads all of them, whoever wrote them, so
    that a start with another number of ranks finds every row.

    Rows that we broke are not kept: the next start asks them again.
    """

    folder: Path
    share: Share
    files: RowFiles[RowT]
    _waiting: list[RowT] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def read(self) -> list[RowT]:
        """The rows of earlier starts, in the order of the files' names."""
        # File by file: another rank may add one meanwhile.
        return [row for path in sorted(self.folder.glob("*.parquet")) for row in self.files.read(path)]

    def add(self, row: RowT) -> None:
        """Take a row; it is on disk after some more rows or seconds, or after :meth:`flush`."""
        if not self.files.is_broken(row):
            self._waiting.append(row)
        is_due = time.monotonic() - self._written >= _SECONDS_PER_FILE
        if is_due or len(self._waiting) >= _ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Put on disk what waits."""
        if self._waiting:
            own = f"{self.share.rank}of{self.share.num_ranks}"
            numbers = (int(path.name.split("-")[0]) for path in self.folder.glob(f"*-{own}.parquet"))
            path = self.folder / f"{1 + max(numbers, default=0):06d}-{own}.parquet"
            self.files.write(path, self._waiting)
            self._waiting = []
        self._written = time.monotonic()


@dataclass(frozen=True, slots=True)
class Deliveries(Generic[RowT]):
    """What the other ranks of one start hand to the first: all rows of their shares, broken ones too.

    The first rank waits for their files. There is no other communication, because a launcher ends all ranks
    when one fails.
    """

    folder: Path
    launch: str
    share: Share
    files: RowFiles[RowT]

    def hand_in(self, rows: Iterable[RowT]) -> None:
        """Give this rank's rows to the first."""
        self.files.write(self._path(self.share.rank), rows)

    def collect(self) -> list[RowT]:
        """The rows of all other ranks, once all have handed in; nothing for a process that is alone."""
        rows: list[RowT] = []
        for rank in range(1, self.share.num_ranks):
            while not self._path(rank).is_file():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            rows += self.files.read(self._path(rank))
        shutil.rmtree(self.folder, ignore_errors=True)
        return rows

    def _path(self, rank: int) -> Path:
        return self.folder / self.launch / f"{rank}of{self.share.num_ranks}.parquet"
