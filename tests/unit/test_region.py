"""Boxes, crops and zoom (paper 3.2, A.1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import RegionError
from models.region import (
    Box,
    BoxFault,
    Picture,
    PixelBudget,
    Size,
    View,
    find_fault,
    look,
    look_low_resolution,
    see,
    smart_resize,
    snap_outwards,
    zoom_scale,
)

TINY = PixelBudget(3136, 12544)
PAPER = PixelBudget(3136, 1605632)
VIEW = View.of(Size(448, 448), TINY)
RULES = {"min_side": 4.0, "max_aspect_ratio": 10.0, "repeated_iou": 0.7}


def _seen(*corners: float) -> Box:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, "seen")


def _picture(width: int = 448, height: int = 448) -> Image.Image:
    """Red rises to the right, green downwards: every place has its own colour."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)[None]
    pixels[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("ratio", "scale"),
    [
        (0.0, 2.0),
        (0.1249, 2.0),
        (0.125, 2.0),  # 2 - (0.125 - 0.125) / 0.375
        (0.3125, 1.5),  # 2 - 0.1875 / 0.375
        (0.5, 1.0),
        (1.0, 1.0),
    ],
)
def test_zoom_follows_equation_4(ratio, scale):
    assert zoom_scale(ratio) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        # 448 / 28 = 16 rows; 448 * 448 = 200704 > 12544, beta = 4, so 112.
        ((448, 448), (112, 112)),
        # 10 x 10 is one unit, 28 * 28 < 3136: beta = 5.6, 56 = 2 units.
        ((10, 10), (56, 56)),
        ((112, 112), (112, 112)),
    ],
)
def test_smart_resize_by_hand(size, seen):
    found = smart_resize(Size(*size), TINY)
    assert (found.width, found.height) == seen


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_smart_resize_keeps_its_promises(width, height):
    if max(width, height) > 200 * min(width, height):
        return
    found = smart_resize(Size(width, height), PAPER)
    assert found.width % 28 == found.height % 28 == 0
    assert found.area <= PAPER.max_pixels
    assert smart_resize(found, PAPER) == found


def test_smart_resize_refuses_a_ribbon():
    with pytest.raises(RegionError, match=r"201x1.*over 200 times"):
        smart_resize(Size(201, 1), PAPER)


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.tuples(*[st.floats(0, 1) for _ in range(4)]),
)
def test_boxes_survive_the_round_trip_between_spaces(width, height, shares):
    if max(width, height) > 200 * min(width, height):
        return
    view = View.of(Size(width, height), PAPER)
    box = Box(shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height, "original")
    back = view.convert(view.convert(box, "seen"), "original")
    assert back.corners() == pytest.approx(box.corners(), abs=1e-6)


def test_iou_by_hand():
    # 4 x 4 and 4 x 4, overlapping in 2 x 4: 8 / (16 + 16 - 8) = 1/3.
    assert _seen(0, 0, 4, 4).iou(_seen(2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert _seen(0, 0, 4, 4).iou(_seen(4, 0, 8, 4)) == 0
    assert _seen(0, 0, 8, 8).coverage_of(_seen(4, 4, 12, 8)) == pytest.approx(0.5)


def test_boxes_of_two_spaces_are_not_compared():
    with pytest.raises(RegionError, match=r"'seen'.*'original'"):
        _seen(0, 0, 4, 4).iou(Box(0, 0, 4, 4, "original"))


def test_a_crop_holds_the_region_that_was_asked_for():
    """The seen box 28..56 is the original 112..224; its corners keep their colours after the zoom."""
    crop = look(_picture(), VIEW.convert(_seen(28, 28, 56, 56), "original"), TINY).image
    original = _picture()
    for place, source in (((0, 0), (112, 112)), ((crop.width - 1, crop.height - 1), (223, 223))):
        assert crop.getpixel(place) == pytest.approx(original.getpixel(source), abs=3)


def test_a_crop_is_zoomed_then_resized_to_the_budget():
    # 48 x 32 is far below an eighth of the picture: zoomed by 2 to 96 x 64, in units of 28: 3 x 2.
    crop = look(_picture(), Box(100, 100, 148, 132, "original"), TINY)
    assert (crop.size.width, crop.size.height) == (84, 56)


def test_a_crop_keeps_the_aspect_ratio_within_rounding():
    crop = look(_picture(1000, 1000), Box(0, 0, 400, 200, "original"), PAPER)
    assert crop.size.width / crop.size.height == pytest.approx(2, rel=0.05)


def test_a_crop_needs_original_pixels():
    with pytest.raises(RegionError, match="original pixels"):
        look(_picture(), _seen(0, 0, 10, 10), TINY)


def test_corners_round_outwards_and_stop_at_the_border():
    found = snap_outwards(Box(-3, 10.2, 20.7, 500, "original"), Size(448, 448))
    assert found.corners() == (0, 10, 21, 448)
    with pytest.raises(RegionError, match="encloses no pixel"):
        snap_outwards(Box(448, 0, 460, 10, "original"), Size(448, 448))


def test_the_low_resolution_crop_has_the_size_but_not_the_detail():
    """A chess board of single pixels turns grey when the picture is reduced by four."""
    board = (np.indices((448, 448)).sum(axis=0) % 2 * 255).astype(np.uint8)
    picture = Image.fromarray(board).convert("RGB")
    box = Box(112, 112, 168, 168, "original")
    sharp, blurred = look(picture, box, TINY), look_low_resolution(picture, box, TINY)
    assert sharp.size == blurred.size
    assert np.asarray(sharp.image).std() > 10 * np.asarray(blurred.image).std()


@pytest.mark.parametrize(
    ("corners", "fault"),
    [
        ((10, 10, 40, 40), None),
        ((40, 10, 10, 40), BoxFault.INVERTED_BOX),
        ((10, 40, 40, 40), BoxFault.INVERTED_BOX),
        ((-1, 10, 40, 40), BoxFault.OUTSIDE_IMAGE),
        ((10, 10, 113, 40), BoxFault.OUTSIDE_IMAGE),
        ((0, 0, 448, 448), BoxFault.OUTSIDE_IMAGE),
        ((10, 10, 13, 40), BoxFault.TOO_SMALL),
        ((0, 10, 100, 15), BoxFault.ASPECT_RATIO),
        ((61, 60, 90, 90), BoxFault.REPEATED_BOX),
    ],
)
def test_every_fault_has_its_name(corners, fault):
    assert find_fault(_seen(*corners), VIEW, (_seen(60, 60, 90, 90),), **RULES) is fault


def test_an_impossible_budget_is_refused():
    with pytest.raises(RegionError, match="factor"):
        PixelBudget(100, 12544)
    with pytest.raises(RegionError, match="at least 1 pixel"):
        Size(0, 4)


def test_pictures_are_equal_when_their_pixels_are():
    assert see(_picture(), TINY) == see(_picture(), TINY)
    assert Picture.of(_picture()) != Picture.of(_picture().transpose(Image.Transpose.ROTATE_90))
    assert hash(Picture.of(_picture())) == hash(Picture.of(_picture()))
