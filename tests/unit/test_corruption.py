"""Boxes that miss on purpose: where they lie, which ones they are, and that nobody else moves."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.config import BoxCorruption, CorruptionWay, Look
from models.corruption import box_to_cut, perturbed, replaced
from models.engine import ScriptedEngine
from models.records import Question
from models.region import Box, Size, View, look
from models.rollout import derive_seed, rollout
from models.trajectory import SampledSpan

# A picture of 448 x 448 is seen at 112 x 112.
LOOK = Look(min_pixels=3136, max_pixels=12544)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8))
TURNS = (
    '<think>{"bbox_2d": [28, 28, 56, 56]}',
    '{"bbox_2d": [56, 0, 112, 56]}',
    " It says K7.</think><answer>K7</answer>",
)
SEEN = Size(112, 112)
VIEW = View(original=Size(448, 448), seen=SEEN)
WAYS: tuple[CorruptionWay, ...] = ("replace", "perturb")


@st.composite
def boxes(draw: st.DrawFn, most: int = 112) -> Box:
    x, y = draw(st.integers(0, 108)), draw(st.integers(0, 108))
    width, height = draw(st.integers(4, min(most, 112 - x))), draw(st.integers(4, min(most, 112 - y)))
    return Box(x, y, x + width, y + height, "seen")


def is_inside(box: Box) -> bool:
    return box.x1 >= -1e-9 and box.y1 >= -1e-9 and box.x2 <= 112 + 1e-9 and box.y2 <= 112 + 1e-9


# A side of at most a third of the picture leaves room beside the box wherever it lies.
@given(boxes(most=37), st.integers(0, 1000))
def test_a_replaced_box_keeps_its_size_and_touches_nothing_of_the_asked_one(box: Box, seed: int) -> None:
    found = replaced(box, SEEN, np.random.default_rng(seed))
    assert (found.width, found.height) == (pytest.approx(box.width), pytest.approx(box.height))
    assert is_inside(found)
    assert found.iou(box) == pytest.approx(0, abs=1e-9)


@given(boxes(), st.integers(0, 1000))
def test_a_perturbed_box_is_near_and_not_the_same(box: Box, seed: int) -> None:
    found = perturbed(box, SEEN, np.random.default_rng(seed))
    assert is_inside(found)
    assert 0 < found.iou(box) < 0.5


@given(boxes(), st.integers(0, 1000))
def test_no_box_is_too_large_to_miss(box: Box, seed: int) -> None:
    """A box over the whole picture leaves no place beside it; it shrinks instead."""
    found = replaced(box, SEEN, np.random.default_rng(seed))
    assert is_inside(found)
    assert found.iou(box) < 0.5


def test_a_replaced_box_may_lie_anywhere_else() -> None:
    """A box of 30 x 30 in the middle (41 to 71) leaves 41 pixels on each side: all four sides are used."""
    middle = Box(41, 41, 71, 71, "seen")
    rng = np.random.default_rng(0)
    found = [replaced(middle, SEEN, rng) for _ in range(200)]
    sides = {(box.x2 <= 41, box.x1 >= 71, box.y2 <= 41, box.y1 >= 71) for box in found}
    for side in range(4):
        assert any(one[side] for one in sides)


def missing(kept_share: float, way: CorruptionWay, num_boxes: int = 400) -> set[tuple[int, int]]:
    """Which of two boxes of each of many attempts miss."""
    box, corruption = Box(20, 20, 40, 40, "seen"), BoxCorruption(way=way, kept_share=kept_share)
    found = set()
    for attempt in range(num_boxes // 2):
        rng = np.random.default_rng(derive_seed(0, f"q{attempt}", 0))
        for number in range(2):
            if box_to_cut(box, VIEW, corruption, rng) != box:
                found.add((attempt, number))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_boxes_that_miss_at_80_percent_are_among_those_at_70(way: CorruptionWay) -> None:
    shares = (0.9, 0.8, 0.7, 0.4)
    levels = [missing(share, way) for share in shares]
    for fewer, more in pairwise(levels):
        assert fewer < more
    # 400 boxes: one standard deviation is at most 10.
    for share, found in zip(shares, levels, strict=True):
        assert len(found) == pytest.approx(400 * (1 - share), abs=40)


def test_both_ways_move_the_same_boxes_and_the_same_seed_moves_them_alike() -> None:
    assert missing(0.6, "replace") == missing(0.6, "perturb")
    box, corruption = Box(20, 20, 40, 40, "seen"), BoxCorruption(way="replace", kept_share=0)
    first, again = (box_to_cut(box, VIEW, corruption, np.random.default_rng(7)) for _ in range(2))
    assert first == again != box


def test_all_or_nothing() -> None:
    assert missing(1.0, "replace") == set()
    assert len(missing(0.0, "replace")) == 400


def play(look_rules: Look):
    def script(request):
        return TURNS[sum(isinstance(span, SampledSpan) for span in request.spans)]

    question = Question.of_image(IMAGE, "what code is on the red card?", id="q", answers=["K7"])
    (trajectory,) = rollout(ScriptedEngine(script), [question], look=look_rules)
    return trajectory


@pytest.mark.parametrize("way", WAYS)
def test_the_text_keeps_the_asked_box_and_the_crop_shows_the_other(way: CorruptionWay) -> None:
    plain = play(LOOK)
    moved = play(LOOK.model_copy(update={"corruption": BoxCorruption(way=way, kept_share=0)}))
    assert moved.text == plain.text
    assert moved.accepted_boxes == plain.accepted_boxes
    for asked, crop in zip(moved.accepted_boxes, moved.crops, strict=True):
        assert crop.box.iou(asked) < 0.5
        view = View(Size(IMAGE.width, IMAGE.height), SEEN)
        assert crop.picture == look(IMAGE, view.convert(crop.box, "original"), LOOK.budget)
