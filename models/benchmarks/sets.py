"""Read a published benchmark from a folder of Parquet files, as the Hugging Face hub holds them.

A set is used only if it is the published one: the columns and their types are those that the benchmark's
module declares, and the number of rows is the published number. A part of a set is read only on request, and
says so. Every set has a digest over what defines it, so that two measurements can be told to be of the same.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.benchmarks.interleave import Interleaved, interleave
from models.benchmarks.published import PublishedSet
from models.benchmarks.scorer import Row
from models.config import Style
from models.errors import RecordError, RowCountError

# Rows held in memory at a time; a page of DocVQA is about half a megabyte.
_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class BenchmarkQuestion:
    """One row of a benchmark, ready to be asked and scored.

    ``row`` is what a scorer needs: the published columns but for the pictures, and ``_has_image``.
    ``pictures`` are encoded pictures by their number, the place of their column from 1; there may be none or
    several.
    """

    published: PublishedSet
    split: str
    id: str
    row: Row
    pictures: Mapping[int, bytes]

    def prompt(self, style: Style, *, wrap: Callable[[str], str] = str) -> Interleaved:
        """What the model is asked, and where its pictures stand; ``wrap`` puts the text into a longer one."""
        text = wrap(self.published.prompt(self.row, style))
        return interleave(text, tuple(self.pictures), self.published.picture_mark, style)

    def image(self, number: int) -> Image.Image:
        """A decoded picture. Raises RecordError when it does not open."""
        try:
            return Image.open(io.BytesIO(self.pictures[number])).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RecordError(
                f"{self.published.name} {self.id!r}: its picture {number} does not open ({error}). Fetch the "
                "set again."
            ) from error


@dataclass(frozen=True, slots=True)
class LocalSet:
    """A split of a benchmark in local files, checked against what was published."""

    published: PublishedSet
    split: str
    folder: Path
    files: tuple[Path, ...]
    num_rows: int
    digest: str

    @property
    def is_partial(self) -> bool:
        """True when rows are missing or too many: a number measured on it is not the benchmark's."""
        return self.num_rows != self.published.splits[self.split]

    def questions(self) -> Iterator[BenchmarkQuestion]:
        """The questions in the order of the files, one batch in memory at a time."""
        return read_questions(self.published, self.split, self.files)

    def describe(self) -> dict[str, Any]:
        """What a report says about the set that was measured."""
        return {
            "benchmark": self.published.name,
            "source": self.published.source,
            "split": self.split,
            "num_rows": self.num_rows,
            "num_published_rows": self.published.splits[self.split],
            "is_partial": self.is_partial,
            "digest": self.digest,
        }


def read_set(published: PublishedSet, folder: Path, split: str, *, allow_partial: bool = False) -> LocalSet:
    """A split of a benchmark from a folder of Parquet files; reads every row once for the digest.

    Raises RecordError as :func:`find_set` does, and when an id occurs twice.
    """
    names, num_rows = find_set(published, LocalFiles(folder), split, allow_partial=allow_partial)
    files = tuple(folder / name for name in names)
    return LocalSet(
        published, split, folder, files, num_rows, _digest(read_questions(published, split, files))
    )


class SetFiles(Protocol):
    """Where the files of a set are; written as text, the place for a person."""

    def names(self) -> Iterable[str]:
        """The Parquet files, relative to the place, with forward slashes."""

    def open(self, name: str) -> BinaryIO:
        """One of them, to be read anywhere in it."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The files of a set in a folder."""

    folder: Path

    def names(self) -> Iterable[str]:
        """As deep as a clone of the hub has them."""
        for depth in ("*", "*/*", "*/*/*"):
            for path in self.folder.glob(f"{depth}.parquet"):
                yield path.relative_to(self.folder).as_posix()

    def open(self, name: str) -> BinaryIO:
        """The file."""
        return (self.folder / name).open("rb")

    def __str__(self) -> str:
        return str(self.folder)


def find_set(
    published: PublishedSet, place: SetFiles, split: str, *, allow_partial: bool = False
) -> tuple[tuple[str, ...], int]:
    """The names of a split's files and the number of their rows; only the end of each file is read.

    Raises RecordError when there are no files or no rows, or when a column is missing, unexpected or of
    another type; RowCountError when the number of rows is not the published one (unless ``allow_partial``).
    """
    if split not in published.splits:
        raise RecordError(
            f"{published.name} has no split {split!r}, only {', '.join(published.splits)}. Name one of these."
        )
    names = split_names(place, split)
    found = sum(_checked_rows(published, place, name) for name in names)
    expected = published.splits[split]
    if found == 0:
        raise RecordError(f"{place}: 0 rows in {len(names)} files of split {split!r}. Fetch them again.")
    if found != expected and not allow_partial:
        raise RowCountError(
            f"{place}: {found} rows in {len(names)} files; {published.name} has {expected} in split "
            f"{split!r}. Fetch all its files, or allow a partial set, whose numbers are not the benchmark's."
        )
    return names, found


def split_names(place: SetFiles, split: str) -> tuple[str, ...]:
    """The files of a split, in name order, from the first place where a clone of the hub has them.

    Raises RecordError when there is none.
    """
    configuration, _, name = split.rpartition("/")
    # Last: one folder per configuration that together make the split, as the 30 subjects of MMMU.
    folders = ("", f"{configuration}/", "data/") if configuration else ("", "data/", "*/")
    names = sorted(place.names())
    for folder in folders:
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
            files = [each for each in names if _matches(each, folder + pattern)]
            if files:
                return tuple(files)
    raise RecordError(
        f"{place}: no Parquet file of split {split!r} ({name}-*.parquet). Give the place into which the "
        "data set was downloaded."
    )


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is of a pattern, folder by folder."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(fnmatchcase(*pair) for pair in zip(parts, wanted, strict=True))


def _checked_rows(published: PublishedSet, place: SetFiles, name: str) -> int:
    """The number of rows of a file whose columns are right."""
    with place.open(name) as file:
        parquet = _open(file, f"{place}/{name}")
        _check_columns(published, f"{place}/{name}", parquet.schema_arrow)
        return int(parquet.metadata.num_rows)


def _open(file: Path | BinaryIO, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise RecordError(
            f"{name} is no Parquet file, or only a part of one ({error}). Fetch it again."
        ) from error


def _check_columns(published: PublishedSet, file: str, schema: pa.Schema) -> None:
    found = {field.name: type_name(field.type) for field in schema}
    wanted = published.columns
    problems = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is unexpected" for name in found if name not in wanted),
        # A column without any value in these rows has no type.
        *(
            f"{name} is {found[name]} instead of {wanted[name]}"
            for name in wanted
            if found.get(name, wanted[name]) not in (wanted[name], "null")
        ),
    ]
    if problems:
        raise RecordError(
            f"{file}: its columns are not those of {published.name} ({published.source}): "
            f"{', '.join(problems)}. Fetch the set as it was published."
        )


def type_name(kind: pa.DataType) -> str:
    """An Arrow type in the words of :mod:`models.benchmarks.published`."""
    if pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        if fields == {"bytes": pa.binary(), "path": pa.string()}:
            return "image"
        return f"struct<{', '.join(f'{name}: {type_name(fields[name])}' for name in sorted(fields))}>"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def read_questions(published: PublishedSet, split: str, files: Iterable[Path]) -> Iterator[BenchmarkQuestion]:
    """The questions of files in their order, one batch in memory at a time; nothing is checked."""
    place = 0
    for file in files:
        for batch in _open(file, str(file)).iter_batches(batch_size=_BATCH_SIZE):
            for row in batch.to_pylist():
                yield _question(published, split, row, place)
                place += 1


def _question(published: PublishedSet, split: str, row: dict[str, Any], place: int) -> BenchmarkQuestion:
    id = published.id_of(row, place)
    pictures = {
        number: _picture_bytes(published, id, row[name])
        for number, name in enumerate(published.pictures, start=1)
        if row[name] is not None
    }
    plain = {name: value for name, value in row.items() if published.columns[name] != "image"}
    return BenchmarkQuestion(published, split, id, {**plain, "_has_image": bool(pictures)}, pictures)


def _picture_bytes(published: PublishedSet, id: str, picture: Mapping[str, Any]) -> bytes:
    data = picture["bytes"]
    if not isinstance(data, bytes) or not data:
        raise RecordError(
            f"{published.name} {id!r}: its picture is only a path ({picture['path']!r}). Use the Parquet "
            "files of the hub, which hold the pictures themselves."
        )
    return data


def _digest(questions: Iterator[BenchmarkQuestion]) -> str:
    """sha256 over ids, all published columns and the bytes of the pictures, in the order of the rows."""
    digest = hashlib.sha256()
    seen: set[str] = set()
    for each in questions:
        if each.id in seen:
            raise RecordError(
                f"{each.published.name}: id {each.id!r} occurs more than once. A file may be there twice."
            )
        seen.add(each.id)
        sizes = {str(name): len(data) for name, data in each.pictures.items()}
        digest.update(json.dumps([each.id, each.row, sizes], sort_keys=True).encode())
        for data in each.pictures.values():
            digest.update(data)
    return digest.hexdigest()
