import importlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models._compat import declare_torchvision_operators
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

PAPER = PixelBudget(3136, 1605632)  # paper A.1.1
TINY = PixelBudget(3136, 12544)
RULES = {"min_side": 4.0, "max_aspect_ratio": 10.0, "repeated_iou": 0.7}

sides = st.integers(1, 4000)


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row, so that every pixel tells where it is."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    return Image.fromarray(np.dstack([columns, rows, np.zeros_like(rows)]))


def seen(*corners):
    return Box(*corners, space="seen")


def original(*corners):
    return Box(*corners, space="original")


# Size, budget, and the size it is seen at, worked out from the rule.
RESIZED = {
    "448 squared in the tiny budget: 112 squared is exactly 12544": ((448, 448), TINY, (112, 112)),
    "sides are rounded to multiples of 28": ((100, 90), PAPER, (112, 84)),
    # Rounded 28 x 28 = 784 is too few: beta = sqrt(3136 / 400) = 2.8, 20 * 2.8 = 56.
    "a small picture grows": ((20, 20), PAPER, (56, 56)),
    # beta = sqrt(12000000 / 1605632) = 2.7338: 4000 / beta = 1463 -> 52 * 28, 3000 / beta = 1097 -> 39 * 28
    "a large picture shrinks": ((4000, 3000), PAPER, (1456, 1092)),
    # beta = sqrt(63000 / 12544) = 2.241; 2100 / 2.241 = 937 -> 924, 30 / 2.241 = 13 -> at least 28;
    # 924 * 28 = 25872 is over the budget, which has room for 12544 / 28 = 448.
    "a strip gives up length for its least height": ((2100, 30), TINY, (448, 28)),
}


@pytest.mark.parametrize("name", RESIZED)
def test_smart_resize(name):
    size, budget, expected = RESIZED[name]
    assert smart_resize(Size(*size), budget) == Size(*expected)


@pytest.mark.parametrize("budget", [PAPER, TINY])
@given(width=sides, height=sides)
def test_a_seen_size_is_within_the_budget_and_stays_as_it_is(budget, width, height):
    size = Size(width, height)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(RegionError, match="200 times"):
            smart_resize(size, budget)
        return
    resized = smart_resize(size, budget)
    assert resized.width % 28 == resized.height % 28 == 0
    assert budget.min_pixels <= resized.area <= budget.max_pixels
    # The engine's processor resizes again: it must find nothing to do.
    assert smart_resize(resized, budget) == resized


@pytest.fixture(scope="module")
def published_rule():
    """transformers' own smart_resize(height, width, factor, min_pixels, max_pixels)."""
    declare_torchvision_operators()
    module = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.smart_resize


@given(width=st.integers(28, 2000), height=st.integers(28, 2000))
def test_smart_resize_is_the_published_rule(published_rule, width, height):
    expected = published_rule(height, width, 28, PAPER.min_pixels, PAPER.max_pixels)
    resized = smart_resize(Size(width, height), PAPER)
    assert (resized.height, resized.width) == expected


# Eq. 4: 2 below 0.125, 1 from 0.5 on, a straight line in between; continuous at both ends.
@pytest.mark.parametrize(
    ("ratio", "scale"),
    [(0.0, 2.0), (0.124, 2.0), (0.125, 2.0), (0.3125, 1.5), (0.4999999, 1.0), (0.5, 1.0), (1.0, 1.0)],
)
def test_zoom_follows_equation_4(ratio, scale):
    assert zoom_scale(ratio) == pytest.approx(scale, abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_region_is_never_magnified_less(first, second):
    smaller, larger = sorted((first, second))
    assert zoom_scale(smaller) >= zoom_scale(larger)


@given(
    width=sides,
    height=sides,
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_box_survives_the_way_there_and_back(width, height, corners):
    if max(width, height) > 200 * min(width, height):
        return
    view = View.of(Size(width, height), TINY)
    box = original(corners[0] * width, corners[1] * height, corners[2] * width, corners[3] * height)
    there = view.convert(box, "seen")
    assert there.space == "seen"
    assert view.convert(there, "original").corners() == pytest.approx(box.corners(), abs=1e-6)


def test_conversion_scales_each_side_by_its_own_factor():
    # 100 x 90 is seen at 112 x 84: factors 1.12 and 0.9333...
    view = View.of(Size(100, 90), PAPER)
    assert view.convert(original(50, 45, 100, 90), "seen").corners() == pytest.approx((56, 42, 112, 84))
    assert view.convert(seen(0, 0, 56, 42), "original").corners() == pytest.approx((0, 0, 50, 45))
    assert view.whole("seen") == seen(0, 0, 112, 84)


def test_the_crop_of_a_known_square_is_that_square():
    # 56 x 56 of 448 x 448 is 1/64 of the area: magnified 2 x, to 112 x 112.
    crop = look(gradient(448, 448), original(112, 168, 168, 224), TINY)
    assert crop.size == Size(112, 112)
    pixels = np.asarray(crop.image)
    # The middle of the crop is the middle of the square: column 140, row 196.
    assert pixels[56, 56, 0] == pytest.approx(140, abs=1)
    assert pixels[56, 56, 1] == pytest.approx(196, abs=1)


def test_a_crop_keeps_its_shape():
    # 112 x 56 of 448 x 448: 1/32 of the area, 2 x: 224 x 112 = 25088, over 12544: shrunk by sqrt(2) to
    # 158 x 79, then down to multiples of 28.
    crop = look(gradient(448, 448), original(0, 0, 112, 56), TINY)
    assert crop.size == Size(140, 56)


def test_a_region_of_half_the_picture_is_not_magnified():
    crop = look(gradient(112, 112), original(0, 0, 112, 56), PAPER)
    assert crop.size == Size(112, 56)
    assert np.array_equal(np.asarray(crop.image), np.asarray(gradient(112, 112))[:56])


def test_a_low_resolution_crop_costs_the_same_and_shows_less():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8))
    box = original(112, 112, 224, 224)
    true, low = look(image, box, TINY), look_low_resolution(image, box, TINY)
    assert true.size == low.size
    # Noise that was averaged over 4 x 4 pixels has far less contrast.
    assert np.asarray(low.image).std() < 0.6 * np.asarray(true.image).std()


def test_corners_between_pixels_are_rounded_outwards():
    assert snap_outwards(original(1.2, 2.7, 3.1, 4.0), Size(10, 10)) == original(1, 2, 4, 4)
    # A rounding error of the transform does not add a row of pixels.
    assert snap_outwards(original(0, 0, 5.0000000001, 5), Size(10, 10)) == original(0, 0, 5, 5)
    assert snap_outwards(original(-3, -3, 99, 99), Size(10, 20)) == original(0, 0, 10, 20)


@pytest.mark.parametrize("corners", [(5, 5, 5, 9), (9, 9, 5, 5), (10, 0, 12, 5), (-5, 0, 0, 5)])
def test_a_box_without_pixels_cannot_be_cut(corners):
    with pytest.raises(RegionError, match="encloses no pixel of the 10x10"):
        snap_outwards(original(*corners), Size(10, 10))


def test_a_crop_needs_original_pixels():
    with pytest.raises(RegionError, match="'seen'"):
        look(gradient(56, 56), seen(0, 0, 28, 28), TINY)


def test_boxes_of_different_spaces_are_not_compared():
    with pytest.raises(RegionError, match=r"'seen'.*'original'"):
        seen(0, 0, 1, 1).iou(original(0, 0, 1, 1))


def test_overlap_measures():
    # Two squares of 10 x 10 that share 5 x 5: union 175.
    a, b = seen(0, 0, 10, 10), seen(5, 5, 15, 15)
    assert a.intersection(b) == 25
    assert a.iou(b) == pytest.approx(25 / 175)
    assert a.coverage_of(b) == pytest.approx(0.25)
    assert a.iou(seen(20, 20, 30, 30)) == 0
    assert seen(0, 0, 0, 0).iou(seen(0, 0, 0, 0)) == 0
    assert seen(9, 9, 1, 1).area == 0


# A view of 112 x 112; each box and what is wrong with it.
VIEW = View.of(Size(448, 448), TINY)
FAULTS = {
    "good": ((28, 28, 56, 56), None),
    "the whole picture": ((0, 0, 112, 112), None),
    "smallest": ((0, 0, 4, 4), None),
    "longest": ((0, 0, 40, 4), None),
    "inverted in x": ((56, 28, 28, 56), BoxFault.INVERTED_BOX),
    "inverted in y": ((28, 56, 56, 28), BoxFault.INVERTED_BOX),
    "empty": ((28, 28, 28, 56), BoxFault.INVERTED_BOX),
    "right of the picture": ((28, 28, 112.5, 56), BoxFault.OUTSIDE_IMAGE),
    "above the picture": ((28, -1, 56, 56), BoxFault.OUTSIDE_IMAGE),
    "in pixels of the original": ((112, 112, 224, 224), BoxFault.OUTSIDE_IMAGE),
    "one pixel": ((28, 28, 29, 29), BoxFault.TOO_SMALL),
    "thin": ((28, 28, 56, 31.9), BoxFault.TOO_SMALL),
    "long": ((0, 0, 41, 4), BoxFault.ASPECT_RATIO),
    "tall": ((0, 0, 4, 100), BoxFault.ASPECT_RATIO),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    corners, fault = FAULTS[name]
    assert find_fault(seen(*corners), VIEW, **RULES) is fault


def test_a_region_that_was_shown_is_a_fault():
    earlier = (seen(0, 0, 20, 20), seen(28, 28, 56, 56))
    # 28 x 28 against 28 x 24: IoU 672 / 784 = 0.857; against 28 x 19: 532 / 784 = 0.679.
    assert find_fault(seen(28, 28, 56, 52), VIEW, earlier, **RULES) is BoxFault.REPEATED_BOX
    assert find_fault(seen(28, 28, 56, 47), VIEW, earlier, **RULES) is None


def test_a_picture_is_equal_by_its_pixels():
    picture = Picture.of(gradient(56, 28))
    assert picture == Picture.of(gradient(56, 28))
    assert hash(picture) == hash(Picture.of(gradient(56, 28)))
    assert picture != Picture.of(gradient(28, 56))
    changed = gradient(56, 28)
    changed.putpixel((3, 3), (255, 255, 255))
    assert picture != Picture.of(changed)


def test_pictures_become_rgb():
    assert Picture.of(Image.new("L", (28, 28), 7)).image.mode == "RGB"
    assert see(Image.new("RGBA", (448, 448)), TINY).size == Size(112, 112)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # Orientation: a viewer turns it
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1
SIXTEEN_BITS = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        *(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in (
                (b"IHDR", struct.pack(">II5B", 56, 56, 16, 2, 0, 0, 0)),
                (b"IDAT", zlib.compress((b"\0" + b"\x12\x34" * 3 * 56) * 56)),
                (b"IEND", b""),
            )
        ),
    )
)
# A file, and whether an endpoint may get it as it is.
FILES = {
    "PNG": (encoded(gradient(56, 56), "PNG"), True),
    "JPEG": (encoded(gradient(56, 56), "JPEG"), True),
    "JPEG, upright by its EXIF": (encoded(gradient(56, 56), "JPEG", exif=UPRIGHT), True),
    "JPEG, turned by its EXIF": (encoded(gradient(56, 56), "JPEG", exif=TURNED), False),
    "another size": (encoded(gradient(60, 60), "PNG"), False),
    "another format": (encoded(gradient(56, 56), "WEBP", lossless=True), False),
    "grey": (encoded(gradient(56, 56).convert("L"), "PNG"), False),
    "palette": (encoded(gradient(56, 56).convert("P"), "PNG"), False),
    "CMYK": (encoded(gradient(56, 56).convert("CMYK"), "JPEG"), False),
    "with an alpha channel": (encoded(gradient(56, 56).convert("RGBA"), "PNG"), False),
    "with a transparent colour": (encoded(gradient(56, 56), "PNG", transparency=(0, 0, 0)), False),
    "animated": (
        encoded(gradient(56, 56), "PNG", save_all=True, append_images=[gradient(56, 56).rotate(90)]),
        False,
    ),
    "16 bits": (SIXTEEN_BITS, False),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_kept_where_it_shows_just_what_is_seen(name):
    file, is_kept = FILES[name]
    picture = see(Image.open(io.BytesIO(file)), TINY, file=file)
    assert picture.size == Size(56, 56)
    assert picture.file == (file if is_kept else b"")
    if is_kept:
        assert Picture.of(Image.open(io.BytesIO(picture.file))) == picture


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_a_size_has_pixels(width, height):
    with pytest.raises(RegionError, match="at least 1 pixel"):
        Size(width, height)


@pytest.mark.parametrize("budget", [(100, 12544), (3136, 3000)])
def test_an_impossible_budget_is_refused(budget):
    with pytest.raises(RegionError, match="Pixel budget"):
        PixelBudget(*budget)
