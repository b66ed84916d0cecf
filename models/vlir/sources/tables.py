"""Rows of Parquet files, a few in memory at a time, from any row on."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from models.benchmarks.sets import type_name
from models.errors import RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.faults import BadRow, Row

# Pictures of some megabytes each.
_BATCH_SIZE = 16
# Read in pieces: a row group of the hub has hundreds of megabytes of pictures. Twice its largest page is
# held: as it is stored, and decompressed.
_BUFFER_BYTES = 1 << 20
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


class Table:
    """Parquet files of the same columns, read one after the other.

    ``columns`` maps the columns that are needed to the types they may have, in the words of
    :func:`models.benchmarks.sets.type_name`; no type stands for any. ``optional`` columns are read where they
    are there, other ones are left alone. ``what`` names the set for messages. Raises RecordError when the
    columns are not these.
    """

    def __init__(
        self,
        files: tuple[Path, ...],
        columns: Mapping[str, tuple[str, ...]],
        *,
        optional: Sequence[str] = (),
        what: str,
    ) -> None:
        self.files = files
        self._needed = columns
        self._what = what
        schemas = [self._checked_schema(path) for path in files]
        self.columns = (
            *columns,
            *(name for name in optional if all(name in schema.names for schema in schemas)),
        )

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are; only the end of each file is read."""
        return sum(self._open(path).metadata.num_rows for path in self.files)

    def rows(
        self, *, start: int = 0, before: Sequence[str] | None = None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        """Every row and its number, from 0; of rows before ``start`` only the columns ``before``."""
        if before is None:
            start = 0
        for number, batch, place in self.places(stop=start, columns=before):
            yield number, _row(batch, place)
        for number, batch, place in self.places(start=start):
            yield number, _row(batch, place)

    def places(
        self, *, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch, int]]:
        """The rows from number ``start`` up to ``stop``: number, a batch of Arrow, and the place in it."""
        names = list(self.columns if columns is None else columns)
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        first = 0
        for path in self.files:
            parquet = self._open(path)
            for group in range(parquet.num_row_groups):
                last = first + parquet.metadata.row_group(group).num_rows
                if last > start and first < stop:
                    for number, batch, place in self._group(parquet, path, group, names):
                        if start <= first + number < stop:
                            yield first + number, batch, place
                first = last

    def _group(
        self, parquet: pq.ParquetFile, path: Path, group: int, names: list[str]
    ) -> Iterator[tuple[int, pa.RecordBatch, int]]:
        number = 0
        try:
            for batch in parquet.iter_batches(_BATCH_SIZE, row_groups=[group], columns=names):
                for place in range(batch.num_rows):
                    yield number, batch, place
                    number += 1
        except (OSError, pa.ArrowInvalid) as error:
            raise RecordError(f"{path}: row group {group} is damaged ({error}). Fetch it again.") from error

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise RecordError(
                f"{path} is no Parquet file, or only a part of one ({error}). Fetch it again."
            ) from error

    def _checked_schema(self, path: Path) -> pa.Schema:
        schema: pa.Schema = self._open(path).schema_arrow
        found = {field.name: type_name(field.type) for field in schema}
        problems = [
            *(f"{name} is missing" for name in self._needed if name not in found),
            *(
                f"{name} is {found[name]} instead of {' or '.join(types)}"
                for name, types in self._needed.items()
                # A column without any value in these rows has no type.
                if types and found.get(name, types[0]) not in (*types, "null")
            ),
        ]
        if problems:
            raise RecordError(
                f"{path}: its columns are not those of {self._what}: {', '.join(problems)}. It has "
                f"{', '.join(found)}. Give the set as it was published."
            )
        return schema


def _row(batch: pa.RecordBatch, place: int) -> Row | BadRow:
    try:
        return {name: column[place].as_py() for name, column in zip(batch.schema.names, batch.columns)}
    except UnicodeDecodeError as error:
        return BadRow(FaultKind.NOT_UTF8, f"a text of the row is not UTF-8 ({error.reason})")
