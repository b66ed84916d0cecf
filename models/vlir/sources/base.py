"""What every source gives: one sample or one named fault per row, in the order of its files."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from models.region import Box


class FaultKind(StrEnum):
    """Every way a source's row can be unusable. It costs that row and no other."""

    BAD_ROW = "bad_row"  # not JSON, a field of another type, a field missing
    NOT_UTF8 = "not_utf8"
    NO_QUESTION = "no_question"
    NO_ANSWER = "no_answer"
    BAD_BOX = "bad_box"  # out of range or degenerate after clamping
    BAD_ADDRESS = "bad_address"  # an image address of a scheme that is not read
    OUTSIDE_FOLDER = "outside_folder"  # a path that leaves the manifest's folder
    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"  # no picture, or of a format that is not read
    TRUNCATED_IMAGE = "truncated_image"
    TOO_LARGE_IMAGE = "too_large_image"  # more pixels or bytes than allowed; never decoded
    UNUSABLE_SIZE = "unusable_size"  # sides that smart-resize refuses
    DUPLICATE_ID = "duplicate_id"


@dataclass(frozen=True, slots=True)
class Sample:
    """A row as it was read: the file of its picture undecoded, boxes (x1, y1, x2, y2) in original pixels.

    ``row`` counts the source's rows from 0. ``picture`` names the picture for messages. ``split`` is one that
    the user set (``train``, ``validation``, ``test``), or empty: the picture's digest then decides.
    ``question`` is the question alone where ``text`` adds context, options or an instruction to it.
    ``num_dropped_boxes`` counts annotated boxes that enclose nothing of the picture. An empty ``licence`` is
    the source's.
    """

    row: int
    id: str
    text: str
    answers: tuple[str, ...]
    image_bytes: bytes
    picture: str
    boxes: tuple[Box, ...] = ()
    split: str = ""
    kind: str = ""
    question: str = ""
    num_dropped_boxes: int = 0
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used, and why."""

    row: int
    id: str
    kind: FaultKind
    detail: str


class Source(Protocol):
    """A set of questions in local files."""

    @property
    def label(self) -> str:
        """What records call it."""

    @property
    def licence(self) -> str:
        """The licence note of every record."""

    def num_rows(self) -> int:
        """How many rows there are, read or not; cheap."""

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every row from number ``start`` on, in order; only pictures are read, none is decoded."""
