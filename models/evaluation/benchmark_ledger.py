"""The rows of a benchmark that were asked so far, on disk: what an interruption leaves, what ranks share."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from models.evaluation.benchmark_rows import AskedRow, read_asked, write_asked
from models.evaluation.shards import ALONE, Share

# A file is closed after so many rows, or so many seconds: what a killed process loses at most.
_ROWS_PER_FILE = 64
_SECONDS_PER_FILE = 30.0
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(slots=True)
class Ledger:
    """A folder of small files. Every rank adds files of its own and reads all of them, whoever wrote them, so
    that a start with another number of ranks finds every row.

    Rows that we broke are not kept: the next start asks them again.
    """

    folder: Path
    share: Share = ALONE
    _waiting: list[AskedRow] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, AskedRow]:
        """The rows of earlier starts by id."""
        # File by file: another rank may add one meanwhile.
        return {row.id: row for path in sorted(self.folder.glob("*.parquet")) for row in read_asked(path)}

    def add(self, row: AskedRow) -> None:
        """Take a row; it is on disk after some more rows or seconds, or after :meth:`flush`."""
        if row.outcome != "failed":
            self._waiting.append(row)
        is_due = time.monotonic() - self._written >= _SECONDS_PER_FILE
        if is_due or len(self._waiting) >= _ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Put on disk what waits."""
        if self._waiting:
            own = f"{self.share.rank}of{self.share.num_ranks}"
            numbers = (int(path.name.split("-")[0]) for path in self.folder.glob(f"*-{own}.parquet"))
            write_asked(self.folder / f"{1 + max(numbers, default=0):06d}-{own}.parquet", self._waiting)
            self._waiting = []
        self._written = time.monotonic()


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What the other ranks of one start hand to the first: all rows of their shares, broken ones too.

    The first rank waits for their files. There is no other communication, because a launcher ends all ranks
    when one fails.
    """

    folder: Path
    launch: str
    share: Share

    def hand_in(self, rows: Iterable[AskedRow]) -> None:
        """Give this rank's rows to the first."""
        write_asked(self._path(self.share.rank), rows)

    def collect(self) -> dict[str, AskedRow]:
        """The rows of all other ranks by id, once all have handed in; nothing for a process that is alone."""
        rows: dict[str, AskedRow] = {}
        for rank in range(1, self.share.num_ranks):
            while not self._path(rank).is_file():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            rows |= {row.id: row for row in read_asked(self._path(rank))}
        shutil.rmtree(self.folder, ignore_errors=True)
        return rows

    def _path(self, rank: int) -> Path:
        return self.folder / self.launch / f"{rank}of{self.share.num_ranks}.parquet"
