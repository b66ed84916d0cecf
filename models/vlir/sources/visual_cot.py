"""Visual CoT (Shao et al. 2024, deepcs233/Visual-CoT): questions with the box that answers them.

Read as a source of its own, or joined to another source for its boxes. The ``*_cot_train.jsonl`` files give
``bboxs`` in pixels; the LLaVA files (``viscot_363k.json``) give the hull of the boxes behind ``###``, or
shares of the padded square in the second turn. Many boxes of dude and cub leave their picture: they are
clamped, and dropped when nothing is left.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import ijson

from models.answers import normalise
from models.errors import RecordError
from models.pictures import upright_size
from models.region import Size
from models.vlir.sources.annotations import AnnotationIndex
from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.boxes import Annotation, Corners, FittedBoxes, corners_of, fit
from models.vlir.sources.faults import (
    BadRow,
    Row,
    answers_of,
    content_id,
    key_of,
    question_of,
    samples,
    shown,
    text_of,
)
from models.vlir.sources.files import PictureFolder
from models.vlir.sources.lines import Lines, check_training_file

_NEEDED = ("question", "answer", "image", "bboxs")
_MAX_LINE_BYTES = 1 << 22
_REQUEST = re.compile(r"\s*Please provide the bounding box coordinate of the region.*", re.DOTALL)
_BOX = re.compile(r"\[[-+\d.eE,\s]+\]")
# TextCaps has the pictures of TextVQA.
_SAME_PICTURES = {"textcap": "textvqa", "textcaps": "textvqa"}


@dataclass(frozen=True)
class VisualCoT:
    """The questions of some metadata files; ``pictures`` has one folder per data set."""

    label: str
    licence: str
    metadata: "Metadata"
    pictures: PictureFolder

    def num_rows(self) -> int:
        """How many rows there are."""
        return self.metadata.num_rows

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every row from number ``start`` on."""
        return samples(self.metadata.rows(), start=start, id_of=self._id, sample_of=self._sample)

    def _id(self, row: Row) -> str:
        parts = (text_of(row, "image"), text_of(row, "question"), json.dumps(row.get("answer")))
        return f"{self.label}-{text_of(row, 'dataset') or 'unnamed'}-{content_id(*parts)}"

    def _sample(self, number: int, id: str, row: Row) -> Sample:
        text = question_of(row)
        answer = row.get("answer")
        answers = answers_of(answer if isinstance(answer, list) else [answer], "answer")
        annotation = annotation_of(row)
        names = picture_names(row)
        data = self.pictures.read_first(names)
        fitted = fit_to(data, annotation)
        return Sample(
            row=number,
            id=id,
            text=text,
            answers=answers,
            image_bytes=data,
            picture=names[0],
            boxes=fitted.boxes,
            num_dropped_boxes=fitted.num_dropped,
        )


@dataclass(frozen=True)
class Metadata:
    """Metadata files of the training split, all JSONL or all LLaVA."""

    files: tuple[Path, ...]

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are; LLaVA files are parsed for it."""
        return self._lines.num_rows if self._is_lines else sum(1 for _ in self._conversations())

    def check_fields(self) -> None:
        """Raise RecordError when the files are something else."""
        if self._is_lines:
            self._lines.check_fields(_NEEDED, "Visual CoT")
        elif next(self._conversations(), None) is None:
            raise RecordError(f"{self.files[0]} is no JSON list of conversations: it holds none.")

    def rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Every row and its number, in the form of the JSONL files. Raises RecordError for a row of another
        split.
        """
        rows = self._lines.rows() if self._is_lines else enumerate(self._conversations())
        for number, row in rows:
            if isinstance(row, dict) and row.get("split") not in (None, "", "train"):
                raise RecordError(
                    f"{self.files[0].parent}: row {number} of Visual CoT is of split {row['split']!r}. Only "
                    "training splits are used; give the files of the training split."
                )
            yield number, row

    @property
    def _is_lines(self) -> bool:
        return self.files[0].suffix == ".jsonl"

    @cached_property
    def _lines(self) -> Lines:
        return Lines(self.files, max_line_bytes=_MAX_LINE_BYTES)

    def _conversations(self) -> Iterator[Row | BadRow]:
        for path in self.files:
            try:
                with path.open("rb") as file:
                    for item in ijson.items(file, "item", use_float=True):
                        yield _row_of(item)
            except (OSError, ijson.JSONError) as error:
                raise RecordError(
                    f"{path} is no JSON list of conversations, or a part of one ({error}). Fetch it again."
                ) from error


class BoxJoin:
    """Boxes for the questions of another source.

    A row is found by its question and the name of its picture, without folder and ending. Where a set does
    not keep that name, by its question, the size of its picture and an answer, if only one row has these.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._index = AnnotationIndex(self._items(metadata))

    def find(
        self, question: str, answers: Sequence[str], names: Sequence[str], size: Size | None
    ) -> Annotation | None:
        """The boxes of a question about a picture that has these names, None when there are none."""
        asked = normalise(question)
        for name in names:
            if name and (found := self._index.find(key_of(asked, _stem(name)))):
                return found
        if size is not None:
            for answer in dict.fromkeys(map(normalise, answers)):
                if found := self._index.find_only(key_of(asked, f"{size.width}x{size.height}", answer)):
                    return found
        return None

    def fit(self, data: bytes, question: str, answers: Sequence[str], names: Sequence[str]) -> FittedBoxes:
        """The boxes of a question in pixels of the picture in a file."""
        annotation = self.find(question, answers, names, upright_size(data))
        return FittedBoxes() if annotation is None else fit_to(data, annotation)

    @staticmethod
    def _items(metadata: Metadata) -> Iterator[tuple[list[int], Annotation]]:
        for _, row in metadata.rows():
            try:
                if isinstance(row, BadRow):
                    raise row
                asked, annotation = normalise(question_of(row)), annotation_of(row)
                keys = [key_of(asked, _stem(text_of(row, "image")))]
                if annotation.size is not None and isinstance(row.get("answer"), str):
                    shape = f"{annotation.size.width}x{annotation.size.height}"
                    keys.append(key_of(asked, shape, normalise(row["answer"])))
            except BadRow:
                continue  # its question stays without a box, as one that nobody annotated
            if annotation.corners:
                yield keys, annotation


def find_metadata(data: Path) -> Metadata:
    """The metadata files at a place, a folder or a file. Raises RecordError for files of another split."""
    if data.is_file():
        files = [data]
    else:
        files = [
            path for depth in ("*", "*/*", "*/*/*") for path in sorted(data.glob(f"{depth}_cot_train.jsonl"))
        ]
        files = files or sorted(data.glob("viscot_*.json"))[:1]
    for path in files:
        check_training_file(path, "Visual CoT")
    if not files or any(path.suffix not in (".jsonl", ".json") for path in files):
        raise RecordError(
            f"{data}: no metadata of Visual CoT is there. Give the folder of *_cot_train.jsonl, or one file "
            "(.jsonl, or LLaVA's .json)."
        )
    metadata = Metadata(tuple(files))
    metadata.check_fields()
    return metadata


def picture_names(row: Row) -> tuple[str, ...]:
    """Where a row's picture may lie below the folder of pictures."""
    name = text_of(row, "image")
    if not name:
        raise BadRow(FaultKind.MISSING_IMAGE, "the row names no picture")
    dataset = text_of(row, "dataset")
    folder = _SAME_PICTURES.get(dataset, dataset)
    bare = name.removeprefix("cot/")
    places = (f"{folder}/{bare}", f"cot/{folder}/{bare}") if folder else ()
    return tuple(dict.fromkeys((*places, bare, name)))


def annotation_of(row: Row) -> Annotation:
    """The boxes of a row; none is right, too."""
    boxes = row.get("bboxs") or []
    if not isinstance(boxes, list):
        raise BadRow(FaultKind.BAD_BOX, f"bboxs is {shown(boxes)}; it must be a list of [x1, y1, x2, y2]")
    corners = tuple(corners_of(each, "bboxs") for each in boxes)
    width, height = row.get("width"), row.get("height")
    is_sized = all(isinstance(side, int) and 0 < side < 1 << 31 for side in (width, height))
    return Annotation(
        corners, Size(int(width or 0), int(height or 0)) if is_sized else None, bool(row.get("is_padded"))
    )


def fit_to(data: bytes, annotation: Annotation) -> FittedBoxes:
    """Boxes in pixels of the picture in a file; none when it is no picture, which its reader will say."""
    size = upright_size(data) if annotation.corners else None
    return FittedBoxes() if size is None else fit(annotation, size)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _row_of(item: Any) -> Row | BadRow:
    """A LLaVA conversation in the form of the JSONL files."""
    try:
        turns = [str(turn["value"]) for turn in item["conversations"]]
        images = item["image"] if isinstance(item["image"], list) else [item["image"]]
        path = str(images[0])
        question = _REQUEST.sub("", turns[0].replace("<image>", "")).strip()
        answer = turns[-1]
    except (KeyError, IndexError, TypeError) as error:
        return BadRow(FaultKind.BAD_ROW, f"it is no conversation about a picture ({shown(error)})")
    pixels = [_corners_in(str(image).partition("###")[2]) for image in images[1:]]
    corners = [each for each in pixels if each is not None]
    is_padded = not corners and len(turns) > 2
    if is_padded:
        corners = [each for each in (_corners_in(turns[1]),) if each is not None]
    folder = PurePosixPath(path.removeprefix("cot/")).parent.as_posix()
    return {
        "question": question,
        "answer": answer,
        "image": PurePosixPath(path).name if "/" not in folder and folder != "." else path,
        "dataset": folder if "/" not in folder and folder != "." else "",
        "bboxs": [list(each) for each in corners],
        "is_padded": is_padded,
    }


def _corners_in(text: str) -> Corners | None:
    found = _BOX.search(text)
    if found is None:
        return None
    try:
        return corners_of(json.loads(found.group()), "box")
    except (ValueError, BadRow):
        return None
