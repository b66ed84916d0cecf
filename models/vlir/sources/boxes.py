"""Annotated boxes: from what a set wrote down to corners in pixels of the picture at hand."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.region import Box, Size
from models.vlir.sources.base import FaultKind
from models.vlir.sources.faults import BadRow, shown

Corners = tuple[float, float, float, float]
# Two pictures of one shape: what rounding leaves of a resized side of some hundred pixels.
_SAME_SHAPE = 0.02


@dataclass(frozen=True, slots=True)
class Annotation:
    """Boxes of one question. ``size`` is the picture that they were drawn on, None when nobody noted it.

    ``is_padded``: the corners are shares (0 to 1) of the square into which the picture was centred.
    """

    corners: tuple[Corners, ...]
    size: Size | None = None
    is_padded: bool = False


@dataclass(frozen=True, slots=True)
class FittedBoxes:
    """The boxes that enclose some of the picture, and how many did not."""

    boxes: tuple[Box, ...] = ()
    num_dropped: int = 0


def fit(annotation: Annotation, picture: Size) -> FittedBoxes:
    """Boxes in pixels of ``picture``, clamped to it; one that is empty then is dropped.

    A picture of another size but the same shape is a resized copy: its boxes are resized with it. One of
    another shape is another picture, and none of its boxes means anything.
    """
    drawn_on = annotation.size or picture
    ratio = (drawn_on.width / drawn_on.height) / (picture.width / picture.height)
    if abs(math.log(ratio)) > _SAME_SHAPE:
        return FittedBoxes(num_dropped=len(annotation.corners))
    fx, fy = picture.width / drawn_on.width, picture.height / drawn_on.height
    boxes = []
    for corners in annotation.corners:
        x1, y1, x2, y2 = unpad(corners, drawn_on) if annotation.is_padded else corners
        box = clamp((x1 * fx, y1 * fy, x2 * fx, y2 * fy), picture)
        if box is not None:
            boxes.append(box)
    return FittedBoxes(tuple(boxes), len(annotation.corners) - len(boxes))


def clamp(corners: Corners, picture: Size) -> Box | None:
    """The part of a box that lies in a picture; None when that is under a pixel wide or high."""
    x1, x2 = (min(max(value, 0.0), float(picture.width)) for value in corners[::2])
    y1, y2 = (min(max(value, 0.0), float(picture.height)) for value in corners[1::2])
    return Box(x1, y1, x2, y2, "original") if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def unpad(corners: Corners, picture: Size) -> Corners:
    """Pixels of a picture from shares of the square that it was centred in (Visual CoT's LLaVA files)."""
    side = max(picture.width, picture.height)
    left, top = (side - picture.width) / 2, (side - picture.height) / 2
    x1, y1, x2, y2 = (value * side for value in corners)
    return x1 - left, y1 - top, x2 - left, y2 - top


def from_xywh(x: float, y: float, width: float, height: float) -> Corners:
    """Corners of a box given by its top left corner, width and height."""
    return x, y, x + width, y + height


def hull(boxes: Iterable[Corners]) -> Corners:
    """The smallest box around some boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def corners_of(value: object, name: str) -> Corners:
    """Four finite numbers. Raises BadRow (bad_box) for anything else."""
    numbers = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
    if len(numbers) != 4 or not all(_is_number(number) for number in numbers):
        raise BadRow(FaultKind.BAD_BOX, f"{name} is {shown(value)}; it must be [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = (float(number) for number in numbers)
    return x1, y1, x2, y2


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # As float: a whole number may be too long for one.
        and abs(value) < 1e9
        and math.isfinite(value)
    )
