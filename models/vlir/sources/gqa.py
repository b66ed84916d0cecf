"""GQA (Hudson and Manning 2019, lmms-lab/GQA): questions and pictures in tables of their own, boxes in scene
graphs.

A question's annotations name objects of its picture's scene graph: those of the answer come first. The
questions come in rounds: the first one of every picture, then the second one of each, and so on. So the
pictures are read from front to back once per round, none is kept, and the first thousand questions are about
a thousand pictures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import RecordError
from models.region import Size
from models.vlir.sources.annotations import AnnotationIndex
from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.boxes import Annotation, FittedBoxes, corners_of, from_xywh
from models.vlir.sources.faults import (
    BadRow,
    Row,
    answers_of,
    key_of,
    question_of,
    samples,
    shown,
    text_of,
)
from models.vlir.sources.lines import check_training_file
from models.vlir.sources.published import picture_bytes
from models.vlir.sources.tables import Table
from models.vlir.sources.visual_cot import BoxJoin, fit_to

LICENCE = "CC BY 4.0 (questions, Visual Genome's pictures), MIT (card)"
INSTRUCTIONS, IMAGES = "train_balanced_instructions/train", "train_balanced_images/train"
INSTRUCTION_COLUMNS = {name: ("string",) for name in ("id", "imageId", "question", "answer")}
IMAGE_COLUMNS: Mapping[str, tuple[str, ...]] = {"id": ("string",), "image": ("image",)}
# In this order an annotation's objects are looked at.
_PARTS = ("answer", "fullAnswer", "question")
# Reading on is cheaper than starting anew up to about one row group.
_LONGEST_SKIP = 256


@dataclass(frozen=True)
class GQA:
    """The balanced training questions. ``graphs`` gives objects' boxes, None when there are none."""

    label: str
    licence: str
    instructions: Table
    images: Table
    graphs: AnnotationIndex | None
    join: BoxJoin | None

    def num_rows(self) -> int:
        """How many questions there are."""
        return self.instructions.num_rows

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every question from number ``start`` on, in rounds; those without a picture come last."""
        pictures = _Pictures(self.images)
        return samples(
            self._rows(),
            start=start,
            id_of=lambda row: f"{self.label}-{text_of(row, 'id')}",
            sample_of=lambda number, id, row: self._sample(number, id, row, pictures),
        )

    def _rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        questions, places, order = self._ordered
        for number, place in enumerate(order):
            try:
                (row,) = questions.slice(place, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield number, BadRow(FaultKind.NOT_UTF8, f"a text of the row is not UTF-8 ({error.reason})")
            else:
                yield number, {**row, "picture": int(places[place])}

    def _sample(self, number: int, id: str, row: Row, pictures: "_Pictures") -> Sample:
        text, answers = question_of(row), answers_of([row["answer"]], "answer")
        image = text_of(row, "imageId")
        if row["picture"] < 0:
            raise BadRow(FaultKind.MISSING_IMAGE, f"there is no picture {shown(image)}")
        data = pictures.read(row["picture"])
        fitted = FittedBoxes()
        if self.join is not None:
            fitted = self.join.fit(data, text, answers, (image,))
        if self.graphs is not None and not fitted.boxes:
            fitted = self._objects(row, image, data)
        return Sample(
            row=number,
            id=id,
            text=text,
            answers=answers,
            image_bytes=data,
            picture=image,
            boxes=fitted.boxes,
            num_dropped_boxes=fitted.num_dropped,
        )

    def _objects(self, row: Row, image: str, data: bytes) -> FittedBoxes:
        assert self.graphs is not None
        found = [self.graphs.find(key_of(image, each)) for each in object_ids(row.get("annotations"))]
        fitted = [fit_to(data, annotation) for annotation in found if annotation is not None]
        boxes = dict.fromkeys(box for each in fitted for box in each.boxes)
        return FittedBoxes(tuple(boxes), sum(each.num_dropped for each in fitted))

    @cached_property
    def _ordered(self) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
        """The texts of all questions, the row of each one's picture (-1: none), and their order."""
        names = [name for name in self.instructions.columns if name != "annotations" or self.graphs]
        questions = _columns(self.instructions, names)
        ids = _columns(self.images, ["id"]).column("id").cast(pa.large_string()).combine_chunks()
        found = pc.index_in(questions.column("imageId").cast(pa.large_string()), value_set=ids)
        places = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        # How many questions before it are about the same picture.
        by_picture = np.argsort(places, kind="stable")
        together = places[by_picture]
        first = np.searchsorted(together, together, side="left")
        rounds = np.empty_like(places)
        rounds[by_picture] = np.arange(len(places)) - first
        return questions, places, np.lexsort((places, rounds, places < 0))


class _Pictures:
    """Reads pictures by row, front to back."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows: Iterator[tuple[int, pa.RecordBatch, int]] = iter(())
        self._next = 0

    def read(self, place: int) -> bytes:
        if self._next == 0 or not self._next <= place < self._next + _LONGEST_SKIP:
            self._rows = self._table.places(start=place, columns=["image"])
        for number, batch, row in self._rows:
            self._next = number + 1
            if number == place:
                return picture_bytes({"image": batch.column(0)[row].as_py()})
        raise RecordError(f"GQA: row {place} of the pictures has gone. Did a file change? Start again.")


def object_ids(annotations: Any) -> list[str]:
    """The objects that a question's annotations name, those of the answer first, each once.

    A part is a list of {objectId, value}, as the hub has it, or maps places in the text to ids, as Stanford's
    files do.
    """
    found: list[str] = []
    for part in _PARTS:
        spans = annotations.get(part) if isinstance(annotations, Mapping) else None
        if isinstance(spans, Mapping):
            found += [str(id) for id in spans.values() if id]
        for span in spans if isinstance(spans, list) else ():
            # The hub turned {place: id} into records; in which field the id stands is told by its form: a
            # place in a text is a small number or a range, an id is a long number.
            values = list(span.values()) if isinstance(span, Mapping) else list(span)
            found += [str(id) for id in values if id]
    return list(dict.fromkeys(found))


def find_scene_graphs(data: Path) -> Path:
    """A file of scene graphs, or the training file of a folder. Raises RecordError for another split's."""
    path = data / "train_sceneGraphs.json" if data.is_dir() else data
    check_training_file(path, "GQA")
    return path


def read_scene_graphs(data: Path) -> AnnotationIndex:
    """The boxes of all objects in a file of scene graphs, or in the training file of a folder."""
    path = find_scene_graphs(data)
    try:
        with path.open("rb") as file:
            return AnnotationIndex(_objects(file, path))
    except (OSError, ijson.JSONError) as error:
        raise RecordError(
            f"{path} is no file of scene graphs, or only a part of one ({error}). Fetch it again."
        ) from error


def _objects(file: Any, path: Path) -> Iterator[tuple[list[int], Annotation]]:
    for image, graph in ijson.kvitems(file, "", use_float=True):
        try:
            size = Size(graph["width"], graph["height"])
            for id, each in graph["objects"].items():
                corners = corners_of([each[name] for name in ("x", "y", "w", "h")], "object")
                yield [key_of(image, id)], Annotation((from_xywh(*corners),), size)
        except (KeyError, TypeError, AttributeError, BadRow) as error:
            raise RecordError(
                f"{path}: picture {image!r} is no scene graph of GQA ({error!r}). Each has width, height and "
                "objects with x, y, w, h."
            ) from error


def _columns(table: Table, names: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(path, columns=names) for path in table.files]).combine_chunks()
