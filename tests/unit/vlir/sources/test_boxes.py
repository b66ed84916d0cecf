"""Boxes as sets write them, in pixels of the picture at hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.region import Size
from models.vlir.sources.annotations import AnnotationIndex
from models.vlir.sources.boxes import Annotation, clamp, fit, from_xywh, hull, unpad
from models.vlir.sources.faults import key_of

PICTURE = Size(40, 30)


def fitted(annotation: Annotation, picture: Size = PICTURE) -> tuple[list, int]:
    found = fit(annotation, picture)
    return [box.corners() for box in found.boxes], found.num_dropped


def test_what_lies_outside_is_cut_off_and_what_is_empty_then_is_dropped():
    boxes = ((-5, -5, 10, 10), (30, 20, 90, 90), (50, 5, 60, 9), (20, 5, 10, 9), (5, 5, 5.5, 9))
    assert fitted(Annotation(boxes)) == ([(0, 0, 10, 10), (30, 20, 40, 30)], 3)


def test_a_resized_copy_gets_resized_boxes():
    # Drawn on 80 x 60, read at 40 x 30: half of everything.
    assert fitted(Annotation(((10, 20, 30, 40),), Size(80, 60))) == ([(5, 10, 15, 20)], 0)


def test_boxes_of_a_picture_of_another_shape_mean_nothing():
    assert fitted(Annotation(((10, 20, 30, 40),), Size(30, 40))) == ([], 1)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        # A side of 40, 5 pixels of padding above and below: 0.25 * 40 - 5 = 5.
        (Size(40, 30), (4, 5, 20, 25)),
        # The same standing: 0.1 * 40 - 5 = -1.
        (Size(30, 40), (-1, 10, 15, 30)),
        (Size(40, 40), (4, 10, 20, 30)),
    ],
)
def test_shares_of_the_padded_square_are_unpadded(picture, expected):
    assert unpad((0.1, 0.25, 0.5, 0.75), picture) == pytest.approx(expected)


def test_a_corner_and_sides_become_two_corners():
    assert from_xywh(5, 6, 10, 8) == (5, 6, 15, 14)


def test_the_hull_is_around_all():
    assert hull([(1, 9, 3, 10), (0, 2, 2, 4)]) == (0, 2, 3, 10)


@given(st.tuples(*[st.floats(-1e8, 1e8)] * 4), st.integers(1, 500), st.integers(1, 500))
def test_a_clamped_box_lies_in_its_picture(corners, width, height):
    box = clamp(corners, Size(width, height))
    if box is not None:
        assert 0 <= box.x1 < box.x2 <= width
        assert 0 <= box.y1 < box.y2 <= height


def test_an_index_gives_what_was_put_in():
    first = Annotation(((1, 2, 3, 4), (5, 6, 7, 8)), Size(40, 30))
    second = Annotation((), None, True)
    index = AnnotationIndex([([key_of("a"), key_of("x")], first), ([key_of("b"), key_of("x")], second)])
    assert (index.find(key_of("a")), index.find(key_of("b"))) == (first, second)
    # Of two with one key the first; only() wants just one.
    assert index.find(key_of("x")) == first
    assert index.find_only(key_of("x")) is None
    assert index.find_only(key_of("b")) == second
    assert index.find(key_of("c")) is index.find_only(key_of("c")) is None
    assert AnnotationIndex([]).find(key_of("a")) is None
