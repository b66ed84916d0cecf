"""Questions and visuo-lingual interleaved rationales (VLIR, paper 3.1), and their Parquet files.

Pictures are stored as bytes beside their sha256; Hugging Face ``datasets`` reads them as an Image feature
(:mod:`models.features`). Every file carries its schema version; a reader refuses a version it does not know.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from models.errors import RecordError
from models.features import IMAGE, file_extension, with_features
from models.pixels import as_rgb
from models.region import Box, PixelBudget, Size, Space, View

SCHEMA_VERSION = "vlir/1"

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_BOX = pa.list_(pa.float64())
_QUESTION_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("split", pa.string()),
    ("kind", pa.string()),
    ("image", IMAGE),
    ("image_sha256", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("text", pa.string()),
    ("answers", pa.list_(pa.string())),
    ("gold_boxes", pa.list_(_BOX)),
    ("licence", pa.string()),
]
QUESTION_SCHEMA = with_features(pa.schema(_QUESTION_FIELDS))
RECORD_SCHEMA = with_features(
    pa.schema(
        [
            *_QUESTION_FIELDS,
            ("steps", pa.list_(pa.struct([("text", pa.string()), ("box", _BOX)]))),
            ("final_answer", pa.string()),
            ("seen_width", pa.int32()),
            ("seen_height", pa.int32()),
            ("teacher", pa.string()),
            ("prompt_id", pa.string()),
            ("verdicts", pa.string()),
            ("reason", pa.string()),
        ]
    )
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture. ``gold_boxes`` are in original pixels, in looking order.

    ``kind`` groups questions for reporting; a source without kinds leaves it empty.
    """

    id: str
    source: str
    split: str
    image_bytes: bytes
    image_sha256: str
    width: int
    height: int
    text: str
    answers: tuple[str, ...]
    gold_boxes: tuple[Box, ...] = ()
    licence: str = ""
    kind: str = ""

    @classmethod
    def of_image(
        cls, image: Image.Image, text: str, *, id: str = "question", answers: Sequence[str] = ()
    ) -> "Question":
        """A question about a picture in memory, for interactive use; EXIF orientation is applied."""
        upright = as_rgb(ImageOps.exif_transpose(image))
        data = png_bytes(upright)
        return cls(
            id=id,
            source="interactive",
            split="none",
            image_bytes=data,
            image_sha256=sha256(data),
            width=upright.width,
            height=upright.height,
            text=text,
            answers=tuple(answers),
        )

    def image(self) -> Image.Image:
        """The decoded RGB picture. Raises RecordError when the bytes are not the declared picture."""
        opened = self._opened()
        try:
            opened.load()
            return as_rgb(opened)
        except _UNREADABLE as error:
            raise self._undecodable(error) from error

    def view(self, budget: PixelBudget) -> View:
        """The picture as stored and as seen, from its file's header: its pixels are not decoded.

        Raises RecordError when the bytes are no picture or not the declared one, RegionError when it is too
        long to be seen.
        """
        opened = self._opened()
        return View.of(Size(opened.width, opened.height), budget)

    def _opened(self) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self.image_bytes))
        except _UNREADABLE as error:
            raise self._undecodable(error) from error
        if (image.width, image.height) != (self.width, self.height):
            raise RecordError(
                f"Question {self.id!r}: its picture is {image.width}x{image.height}, "
                f"the record says {self.width}x{self.height}."
            )
        return image

    def _undecodable(self, error: Exception) -> RecordError:
        return RecordError(f"Question {self.id!r}: its picture does not decode ({error}).")


@dataclass(frozen=True, slots=True)
class RationaleStep:
    """A stretch of reasoning and the box it ends with (seen pixels), None in the last step."""

    text: str
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One filter's verdict on a record: ``yes``, ``no`` or ``unclear``, and what it saw."""

    name: str
    verdict: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class VLIRRecord:
    """A question with an interleaved rationale. A rejected record keeps its ``reason``, else it is empty.

    ``steps`` joined in order are the assistant's turn, tags included; after each box the crop is shown.
    ``seen_size`` is the (width, height) that the boxes refer to.
    """

    question: Question
    steps: tuple[RationaleStep, ...]
    final_answer: str
    seen_size: tuple[int, int]
    teacher: str
    prompt_id: str
    verdicts: tuple[Verdict, ...] = field(default=())
    reason: str = ""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The regions looked at, in order, in seen pixels."""
        return tuple(step.box for step in self.steps if step.box is not None)

    @property
    def text(self) -> str:
        """The assistant's turn without crops."""
        return "".join(step.text for step in self.steps)


def sha256(data: bytes) -> str:
    """Hexadecimal digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def png_bytes(image: Image.Image) -> bytes:
    """The picture as PNG, lossless."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write questions to one Parquet file and return their number. The same questions give the same bytes."""
    return write_rows(path, QUESTION_SCHEMA, (_question_row(question) for question in questions))


def read_questions(path: Path) -> list[Question]:
    """All questions of a Parquet file, or of a folder of them in name order."""
    return [_question(row) for row in read_rows(path, QUESTION_SCHEMA)]


def count_questions(path: Path) -> int:
    """How many questions a Parquet file holds."""
    return int(pq.read_metadata(path).num_rows)


def count_records(folder: Path) -> int:
    """How many records the Parquet files of a folder hold."""
    return sum(int(pq.read_metadata(path).num_rows) for path in folder.glob("*.parquet"))


def write_records(path: Path, records: Iterable[VLIRRecord]) -> int:
    """Write rationale records to one Parquet file and return their number."""
    rows = (record_row(record.question, rationale_row(record)) for record in records)
    return write_rows(path, RECORD_SCHEMA, rows)


def read_records(path: Path) -> list[VLIRRecord]:
    """All records of a Parquet file, or of a folder of them in name order."""
    return [_record(row) for row in read_rows(path, RECORD_SCHEMA)]


def write_rows(
    path: Path, schema: pa.Schema, rows: Iterable[dict[str, object]], *, version: str = SCHEMA_VERSION
) -> int:
    """Write rows to one Parquet file that carries ``version``, and return their number."""
    with RowWriter(path, schema, version=version) as writer:
        for row in rows:
            writer.write(row)
    return writer.num_rows


class RowWriter:
    """A Parquet file in the making, a row at a time, as a context.

    It is written beside its place and renamed when the block ends well, so that a reader never meets half a
    file.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, *, version: str = SCHEMA_VERSION, batch_size: int = 512
    ) -> None:
        self.num_rows = 0
        self._path, self._batch_size = path, batch_size
        self._schema = schema.with_metadata({**(schema.metadata or {}), "schema_version": version})
        self._partial = path.with_name(path.name + ".partial")
        self._batch: list[dict[str, object]] = []

    def __enter__(self) -> "RowWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._flush()
            self._file.close()
        except OSError:
            self._partial.write_bytes(b"")  # gives a full disk its room back, though it is still open
            self._partial.unlink()
            raise
        if error is None:
            self._partial.replace(self._path)

    def write(self, row: dict[str, object]) -> None:
        """Append a row."""
        self._batch.append(row)
        self.num_rows += 1
        if len(self._batch) == self._batch_size:
            self._flush()

    def write_question(self, question: Question) -> None:
        """Append a question's row."""
        self.write(_question_row(question))

    def _flush(self) -> None:
        if self._batch:
            self._file.write_table(pa.Table.from_pylist(self._batch, schema=self._schema))
            self._batch = []


def read_rows(path: Path, schema: pa.Schema, *, version: str = SCHEMA_VERSION) -> Iterator[dict]:
    """The rows of a Parquet file, or of a folder of them in name order.

    Raises RecordError when there is none, when its schema version is not ``version``, or when a column is
    missing.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise RecordError(f"{path}: no Parquet file found. Give a .parquet file or a folder that holds some.")
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise RecordError(f"{file} is not a Parquet file, or only a part of one: {error}") from error
        found = (parquet.schema_arrow.metadata or {}).get(b"schema_version", b"none").decode()
        if found != version:
            raise RecordError(
                f"{file}: schema version {found!r}; this reader knows {version!r}. Rebuild the set."
            )
        missing = [name for name in schema.names if name not in parquet.schema_arrow.names]
        if missing:
            raise RecordError(
                f"{file}: columns {missing} are missing. It is not the kind of file expected here."
            )
        for batch in parquet.iter_batches(batch_size=256, columns=schema.names):
            yield from batch.to_pylist()


def _question_row(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "source": question.source,
        "split": question.split,
        "kind": question.kind,
        "image": {
            "bytes": question.image_bytes,
            "path": f"{question.image_sha256}.{file_extension(question.image_bytes)}",
        },
        "image_sha256": question.image_sha256,
        "width": question.width,
        "height": question.height,
        "text": question.text,
        "answers": list(question.answers),
        "gold_boxes": [list(box.corners()) for box in question.gold_boxes],
        "licence": question.licence,
    }


def _question(row: dict) -> Question:
    if missing := [name for name in ("image", "text", "answers", "gold_boxes") if row[name] is None]:
        raise RecordError(f"Question {row['id']!r} has no {missing[0]}: the cell is null. Fill it in.")
    data = row["image"]["bytes"]
    if sha256(data) != row["image_sha256"]:
        raise RecordError(
            f"Question {row['id']!r}: the picture's sha256 differs from the record. The file is damaged."
        )
    return Question(
        id=row["id"],
        source=row["source"],
        split=row["split"],
        kind=row["kind"],
        image_bytes=data,
        image_sha256=row["image_sha256"],
        width=row["width"],
        height=row["height"],
        text=row["text"],
        answers=tuple(row["answers"]),
        gold_boxes=tuple(_box(corners, "original") for corners in row["gold_boxes"]),
        licence=row["licence"],
    )


def rationale_row(record: VLIRRecord) -> dict[str, object]:
    """What a record adds to its question, as JSON can say it."""
    return {
        "steps": [
            {"text": step.text, "box": None if step.box is None else list(step.box.corners())}
            for step in record.steps
        ],
        "final_answer": record.final_answer,
        "seen_width": record.seen_size[0],
        "seen_height": record.seen_size[1],
        "teacher": record.teacher,
        "prompt_id": record.prompt_id,
        "verdicts": json.dumps([asdict(verdict) for verdict in record.verdicts]),
        "reason": record.reason,
    }


def record_row(question: Question, rationale: Mapping[str, object]) -> dict[str, object]:
    """The row (``RECORD_SCHEMA``) of a question and what :func:`rationale_row` made of its rationale."""
    return {**_question_row(question), **rationale}


def _record(row: dict) -> VLIRRecord:
    return VLIRRecord(
        question=_question(row),
        steps=tuple(
            RationaleStep(step["text"], None if step["box"] is None else _box(step["box"], "seen"))
            for step in row["steps"]
        ),
        final_answer=row["final_answer"],
        seen_size=(row["seen_width"], row["seen_height"]),
        teacher=row["teacher"],
        prompt_id=row["prompt_id"],
        verdicts=tuple(Verdict(**verdict) for verdict in json.loads(row["verdicts"])),
        reason=row["reason"],
    )


def _box(corners: Sequence[float], space: Space) -> Box:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, space)
