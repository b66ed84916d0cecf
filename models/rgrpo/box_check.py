"""Whether a box means the same pixels everywhere, for the preflight: from the numbers that the model wrote to
the pixels that it was shown.

Parsing, scaling and cutting are done here a second time, by other means than in the loop, for what is checked
by itself is never wrong.
"""

import math
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from models.config import Look
from models.crops import crop_from_original
from models.errors import RegionError
from models.records import Question
from models.region import Box, Picture, Size, View
from models.trajectory import CropSpan, SampledSpan, Trajectory

_NUMBERS = re.compile(r'"bbox_2d"\s*:\s*\[([^\]]*)\]')
_ROUNDING = 1e-6  # pixels
Corners = tuple[float, ...]


def boxes_are_right(trajectory: Trajectory, question: Question, rules: Look) -> bool:
    """Whether every crop is what its command asked for in the text: those numbers, scaled to the original
    picture, and the pixels that they enclose there. A box that nobody asked for is tried besides, so that
    trajectories without crops say something too.
    """
    image, shown = question.image(), trajectory.prompt.pictures[0].size
    if not _is_somewhere_cut(image, shown, rules):
        return False
    view = View.of(Size(image.width, image.height), rules.budget)
    return all(_is_right(asked, crop, image, view, rules) for asked, crop in _asked(trajectory))


def _is_somewhere_cut(image: Image.Image, shown: Size, rules: Look) -> bool:
    box = Box(0.2 * shown.width, 0.3 * shown.height, 0.7 * shown.width, 0.65 * shown.height, space="seen")
    try:
        picture, _ = crop_from_original(image, box, rules.budget, np.random.default_rng(0))
    except RegionError:  # the picture is so long that the loop would have refused the box
        return True
    return _is_cut(image, shown, box.corners(), picture)


def _is_right(asked: Corners, crop: CropSpan, image: Image.Image, view: View, rules: Look) -> bool:
    corners, shown = crop.box.corners(), view.seen
    is_elsewhere = rules.crop_source == "random_region" or rules.corruption is not None  # on purpose
    original = view.convert(crop.box, "original")
    return (
        (is_elsewhere or _are_equal(asked, corners))
        and _are_equal(_scaled(corners, shown, image), original.corners())
        and _are_equal(view.convert(original, "seen").corners(), corners)
        and (rules.crop_source != "original" or _is_cut(image, shown, corners, crop.picture))
    )


def _asked(trajectory: Trajectory) -> Iterator[tuple[Corners, CropSpan]]:
    """The numbers of the command before each crop as they stand in the text; none where they are none."""
    text = ""
    for span in trajectory.spans:
        if isinstance(span, SampledSpan):
            text += span.text
        elif isinstance(span, CropSpan):
            written = _NUMBERS.findall(text) or [""]
            try:
                yield tuple(map(float, written[-1].split(","))), span
            except ValueError:
                yield (), span


def _scaled(corners: Corners, shown: Size, image: Image.Image) -> Corners:
    x, y = image.width / shown.width, image.height / shown.height
    return tuple(value * scale for value, scale in zip(corners, (x, y, x, y), strict=True))


def _is_cut(image: Image.Image, shown: Size, corners: Corners, picture: Picture) -> bool:
    """Whether a crop has just the pixels that a box of the seen picture encloses in the original."""
    left, top, right, bottom = _scaled(corners, shown, image)
    region = image.crop(
        (
            max(0, math.floor(left + _ROUNDING)),
            max(0, math.floor(top + _ROUNDING)),
            min(image.width, math.ceil(right - _ROUNDING)),
            min(image.height, math.ceil(bottom - _ROUNDING)),
        )
    )
    size = (picture.size.width, picture.size.height)
    return Picture.of(region.resize(size, Image.Resampling.BICUBIC)) == picture


def _are_equal(one: Corners, other: Corners) -> bool:
    return len(one) == len(other) and all(abs(a - b) <= _ROUNDING for a, b in zip(one, other, strict=True))
