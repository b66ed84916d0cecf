"""Read a published benchmark from a local folder of Parquet files, as the Hugging Face hub holds them.

A set is used only if it is the published one: the columns and their types are those that the benchmark's
module declares, and the number of rows is the published number. A part of a set is read only on request, and
says so. Every set has a digest over what defines it, so that two measurements can be told to be of the same.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.benchmarks.published import PublishedSet
from models.benchmarks.scorer import Row
from models.config import Style
from models.errors import RecordError, RowCountError
from models.records import Question, sha256

# Rows held in memory at a time; a page of DocVQA is about half a megabyte.
_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class BenchmarkQuestion:
    """One row of a benchmark, ready to be asked and scored.

    ``row`` is what a scorer needs: the published columns but for the pictures, and ``_has_image``.
    ``pictures`` are encoded pictures in the order in which they are shown; there may be none or several.
    """

    published: PublishedSet
    split: str
    id: str
    row: Row
    pictures: tuple[bytes, ...]

    def text(self, style: Style) -> str:
        """What the model is asked."""
        return self.published.prompt(self.row, style)

    def question(self, style: Style) -> Question:
        """The same as a record that a model can be asked. Raises RecordError unless there is one picture."""
        if len(self.pictures) != 1:
            raise RecordError(
                f"{self.published.name} {self.id!r} has {len(self.pictures)} pictures; a question is asked "
                "about exactly one. Leave it out and say so, or ask it in another way."
            )
        data = self.pictures[0]
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise RecordError(
                f"{self.published.name} {self.id!r}: its picture does not open ({error}). Fetch the set "
                "again."
            ) from error
        return Question(
            id=self.id,
            source=self.published.name,
            split=self.split,
            image_bytes=data,
            image_sha256=sha256(data),
            width=width,
            height=height,
            text=self.text(style),
            answers=self.published.answers(self.row),
            licence=self.published.licence,
            kind=self.published.kind_of(self.row),
        )


@dataclass(frozen=True, slots=True)
class LocalSet:
    """A split of a benchmark in local files, checked against what was published."""

    published: PublishedSet
    split: str
    files: tuple[Path, ...]
    num_rows: int
    digest: str

    @property
    def is_partial(self) -> bool:
        """True when rows are missing or too many: a number measured on it is not the benchmark's."""
        return self.num_rows != self.published.splits[self.split]

    def questions(self) -> Iterator[BenchmarkQuestion]:
        """The questions in the order of the files, one batch in memory at a time."""
        return _questions(self.published, self.split, self.files)

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
    files, num_rows = find_set(published, folder, split, allow_partial=allow_partial)
    return LocalSet(published, split, files, num_rows, _digest(_questions(published, split, files)))


def find_set(
    published: PublishedSet, folder: Path, split: str, *, allow_partial: bool = False
) -> tuple[tuple[Path, ...], int]:
    """The files of a split and the number of their rows, none of which is read.

    Raises RecordError when there are no files or no rows, or when a column is missing, unexpected or of
    another type; RowCountError when the number of rows is not the published one (unless ``allow_partial``).
    """
    if split not in published.splits:
        raise RecordError(
            f"{published.name} has no split {split!r}, only {', '.join(published.splits)}. Name one of these."
        )
    files = _files(folder, split)
    parquets = [_open(file) for file in files]
    for file, parquet in zip(files, parquets, strict=True):
        _check_columns(published, file, parquet.schema_arrow)
    found, expected = sum(parquet.metadata.num_rows for parquet in parquets), published.splits[split]
    if found == 0:
        raise RecordError(f"{folder}: 0 rows in {len(files)} files of split {split!r}. Fetch them again.")
    if found != expected and not allow_partial:
        raise RowCountError(
            f"{folder}: {found} rows in {len(files)} files; {published.name} has {expected} in split "
            f"{split!r}. Fetch all its files, or allow a partial set, whose numbers are not the benchmark's."
        )
    return files, found


def _files(folder: Path, split: str) -> tuple[Path, ...]:
    """The files of a split, in name order, from the first place where a clone of the hub has them."""
    configuration, _, name = split.rpartition("/")
    # Last: one folder per configuration that together make the split, as the 30 subjects of MMMU.
    places = (".", configuration, "data") if configuration else (".", "data", "*")
    for place in places:
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
            files = sorted(folder.glob(f"{place}/{pattern}"))
            if files:
                return tuple(files)
    raise RecordError(
        f"{folder}: no Parquet file of split {split!r} ({name}-*.parquet). Give the folder into which the "
        "data set was downloaded."
    )


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise RecordError(
            f"{file} is no Parquet file, or only a part of one ({error}). Fetch it again."
        ) from error


def _check_columns(published: PublishedSet, file: Path, schema: pa.Schema) -> None:
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


def _questions(published: PublishedSet, split: str, files: tuple[Path, ...]) -> Iterator[BenchmarkQuestion]:
    place = 0
    for file in files:
        for batch in _open(file).iter_batches(batch_size=_BATCH_SIZE):
            for row in batch.to_pylist():
                yield _question(published, split, row, place)
                place += 1


def _question(published: PublishedSet, split: str, row: dict[str, Any], place: int) -> BenchmarkQuestion:
    id = published.id_of(row, place)
    shown = [row[name] for name in published.pictures if row[name] is not None]
    pictures = tuple(_picture_bytes(published, id, picture) for picture in shown)
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
    """sha256 over ids, question texts, gold answers and picture bytes, in order."""
    digest = hashlib.sha256()
    seen: set[str] = set()
    for each in questions:
        if each.id in seen:
            raise RecordError(
                f"{each.published.name}: id {each.id!r} occurs more than once. A file may be there twice."
            )
        seen.add(each.id)
        parts = [each.id, each.row["question"], each.published.answers(each.row), [*map(len, each.pictures)]]
        digest.update(json.dumps(parts).encode())
        for data in each.pictures:
            digest.update(data)
    return digest.hexdigest()
