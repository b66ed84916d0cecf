"""A user's own questions: a JSONL or Parquet manifest of pictures, questions, answers and boxes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import RecordError
from models.pictures import upright_size
from models.region import Box
from models.vlir.sources.addresses import Addresses, picture_name
from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.boxes import Corners, FittedBoxes, clamp, corners_of
from models.vlir.sources.faults import (
    BadRow,
    Row,
    answers_of,
    content_id,
    question_of,
    samples,
    shown,
    text_of,
)
from models.vlir.sources.lines import Lines
from models.vlir.sources.tables import Table
from models.vlir.sources.visual_cot import BoxJoin

_SPLITS = ("train", "validation", "test")
_LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
_NAMES = ("manifest.jsonl", "manifest.parquet")
FIELDS = ("image", "question", "answer", "answers", "box", "boxes", "id", "split", "kind", "licence")


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest. Pictures lie in ``folder``; ``buckets`` has copies of those in S3."""

    label: str
    licence: str
    table: Lines | Table
    folder: Path
    buckets: Path | None
    join: BoxJoin | None
    max_picture_bytes: int

    def num_rows(self) -> int:
        """How many rows there are."""
        return self.table.num_rows

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every row from number ``start`` on."""
        addresses = Addresses(self.folder, self.buckets, max_bytes=self.max_picture_bytes)
        return samples(
            self.table.rows(),
            start=start,
            id_of=self._id,
            sample_of=lambda number, id, row: _sample(number, id, row, addresses, self.join),
        )

    def _id(self, row: Row) -> str:
        given = row.get("id")
        if isinstance(given, int) and not isinstance(given, bool):
            given = str(given)
        if given is None:
            rest = {name: row.get(name) for name in ("question", "answer", "answers", "box", "boxes")}
            given = content_id(picture_name(row.get("image")), json.dumps(rest, default=str))
        id = text_of({"id": given}, "id")
        if not id:
            raise BadRow(FaultKind.BAD_ROW, "id is empty; leave it out, or give each row its own")
        return f"{self.label}-{id}"


def find_manifest(data: Path) -> Path:
    """The file of a manifest, which may be named by its folder. Raises RecordError when there is none."""
    if data.is_dir():
        found = [data / name for name in _NAMES if (data / name).is_file()]
        if len(found) != 1:
            raise RecordError(f"{data}: {len(found)} of {' and '.join(_NAMES)} are there. Name the file.")
        return found[0]
    if not data.is_file():
        raise RecordError(f"{data}: there is no such manifest. Give a .jsonl or .parquet file.")
    if data.suffix.lower() not in (*_LINE_SUFFIXES, ".parquet"):
        raise RecordError(f"{data}: a manifest is a .jsonl or .parquet file. Rename it, if it is one.")
    return data


def open_rows(file: Path, *, max_picture_bytes: int) -> Lines | Table:
    """The rows of a manifest's file. Raises RecordError for a Parquet file without the needed columns."""
    if file.suffix.lower() in _LINE_SUFFIXES:
        # Base64 is a third longer; the rest of a row is small.
        return Lines((file,), max_line_bytes=max_picture_bytes * 4 // 3 + (1 << 20))
    return Table((file,), {"image": (), "question": ()}, optional=FIELDS[2:], what="a manifest")


def _sample(number: int, id: str, row: Row, addresses: Addresses, join: BoxJoin | None) -> Sample:
    text = question_of(row)
    answers = _answers(row)
    corners = _corners(row)
    split = text_of(row, "split")
    if split not in ("", *_SPLITS):
        raise BadRow(FaultKind.BAD_ROW, f"split is {shown(split)}; it must be {', '.join(_SPLITS)} or absent")
    data = addresses.read(row.get("image"))
    picture = picture_name(row.get("image"))
    fitted = FittedBoxes(_boxes(corners, data))
    if join is not None and not corners:
        fitted = join.fit(data, text, answers, (picture,))
    return Sample(
        row=number,
        id=id,
        text=text,
        answers=answers,
        image_bytes=data,
        picture=picture,
        boxes=fitted.boxes,
        num_dropped_boxes=fitted.num_dropped,
        split=split,
        kind=text_of(row, "kind"),
        licence=text_of(row, "licence"),
    )


def _answers(row: Row) -> tuple[str, ...]:
    answer, answers = row.get("answer"), row.get("answers")
    if answer is not None and answers is not None:
        raise BadRow(FaultKind.BAD_ROW, "both answer and answers are given; give one of them")
    if answers is None:
        return answers_of([answer], "answer")
    if not isinstance(answers, list):
        raise BadRow(FaultKind.BAD_ROW, f"answers is {shown(answers)}; it must be a list of texts")
    return answers_of(answers, "answers")


def _corners(row: Row) -> list[Corners]:
    box, boxes = row.get("box"), row.get("boxes")
    if box is not None and boxes is not None:
        raise BadRow(FaultKind.BAD_ROW, "both box and boxes are given; give one of them")
    if box is not None:
        return [corners_of(box, "box")]
    if boxes is not None and not isinstance(boxes, list):
        raise BadRow(FaultKind.BAD_BOX, f"boxes is {shown(boxes)}; it must be a list of [x1, y1, x2, y2]")
    return [corners_of(each, "boxes") for each in boxes or ()]


def _boxes(corners: list[Corners], data: bytes) -> tuple[Box, ...]:
    size = upright_size(data) if corners else None
    if size is None:
        # No boxes, or no picture: whoever decodes it says so.
        return ()
    boxes = []
    for each in corners:
        box = clamp(each, size)
        if box is None:
            raise BadRow(
                FaultKind.BAD_BOX,
                f"{list(each)} encloses nothing of the {size.width}x{size.height} picture",
            )
        boxes.append(box)
    return tuple(boxes)
