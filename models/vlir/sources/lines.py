"""Rows of a JSONL file, one line in memory at a time; a damaged line costs one row."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from models.errors import RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.faults import BadRow, Row, shown

# Names of files that hold another split than the training one.
_OTHER_SPLIT = re.compile(
    r"(?:^|[_.-])(?:val|valid|validation|dev|test|testdev|bench|benchmark)(?:[_.-]|$)", re.IGNORECASE
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Lines:
    """JSONL files, read one after the other. A line without content is no row."""

    def __init__(self, files: tuple[Path, ...], *, max_line_bytes: int) -> None:
        self.files = files
        self._max_line_bytes = max_line_bytes

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are; reads the files, and parses nothing."""
        return sum(1 for _ in self._lines())

    def check_fields(self, needed: Sequence[str], what: str) -> None:
        """Look at the first sound row of each file. Raises RecordError when it lacks a needed field."""
        for path in self.files:
            rows = Lines((path,), max_line_bytes=self._max_line_bytes).rows()
            first = next((row for _, row in rows if isinstance(row, dict)), None)
            missing = [name for name in needed if first is None or name not in first]
            if missing:
                raise RecordError(
                    f"{path}: its rows are not those of {what}: "
                    f"{', '.join(f'{name} is missing' for name in missing)}. They have "
                    f"{', '.join(first or ('nothing',))}. Give the set as it was published."
                )

    def rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Every row and its number, from 0."""
        for number, line in enumerate(self._lines()):
            yield number, self._parsed(line)

    def _lines(self) -> Iterator[bytes]:
        for path in self.files:
            try:
                with path.open("rb") as file:
                    mark = _BYTE_ORDER_MARK
                    while line := file.readline(self._max_line_bytes + 1):
                        if self._is_too_long(line):
                            _skip_line(file, line)
                        line, mark = line.removeprefix(mark), b""
                        if line.strip():
                            yield line
            except OSError as error:
                raise RecordError(f"{path} cannot be read ({error.strerror}). Name a JSONL file.") from error

    def _is_too_long(self, line: bytes) -> bool:
        return len(line) > self._max_line_bytes

    def _parsed(self, line: bytes) -> Row | BadRow:
        if self._is_too_long(line):
            return BadRow(FaultKind.BAD_ROW, f"the line is over {self._max_line_bytes} bytes long")
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return BadRow(FaultKind.NOT_UTF8, f"byte {error.start} of the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            return BadRow(FaultKind.BAD_ROW, f"the line is not JSON ({error})")
        if not isinstance(row, dict):
            return BadRow(FaultKind.BAD_ROW, f"the line is {shown(row)}; it must be a JSON object")
        return row


def _skip_line(file: BinaryIO, begun: bytes) -> None:
    """Read past the rest of a line, a piece at a time."""
    while begun and not begun.endswith(b"\n"):
        begun = file.readline(1 << 20)


def check_training_file(path: Path, what: str) -> None:
    """Raise RecordError for a file that its name gives away as another split's."""
    if _OTHER_SPLIT.search(path.stem):
        raise RecordError(f"{path}: only the training split of {what} is used, and this is no file of it.")
