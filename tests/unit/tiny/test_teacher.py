"""The embedded teacher: how it reads, and how often it errs."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from models.answers import matches
from models.config import Look, VLIRConfig
from models.errors import EngineError
from models.presets import load_preset
from models.protocol import extract_answer, is_well_formed
from models.records import Question
from models.region import Box, Size, View
from models.rollout import rollout
from models.tiny import phrases, world
from models.tiny.teacher import EmbeddedTeacher, covers, jittered_box, make_plan
from models.trajectory import StopReason, Trajectory

NUM_QUESTIONS = 500
SEEN = Size(112, 112)
VIEW = View(Size(448, 448), SEEN)
CARD = world.Card("blue", (112, 120, 160, 152), "K7", (126, 130, 147, 141))
PERFECT = VLIRConfig(
    box_jitter=0.0,
    box_growth=0.0,
    wrong_region_rate=0.0,
    misread_rate=0.0,
    needless_look_rate=0.0,
    muddled_rate=0.0,
    junk_rate=0.0,
)


@pytest.fixture(scope="module")
def look() -> Look:
    return load_preset("tiny").look.model_copy(update={"max_sampled_tokens": 2048})


@dataclass(frozen=True)
class Known:
    """A question whose picture is blank: the teacher knows the scene and reads by geometry, not by pixels."""

    question: Question
    scene: world.Scene
    asked: world.WorldQuestion


@pytest.fixture(scope="module")
def drawn() -> list[Known]:
    """Five hundred questions; a blank picture of the size of the view keeps the loop quick."""
    rng = np.random.default_rng(11)
    blank = Question.of_image(Image.new("RGB", (SEEN.width, SEEN.height)), "")
    known = []
    for index in range(NUM_QUESTIONS):
        scene = world.sample_scene(rng, "train")
        asked = world.ask(scene, ("read", "read", "read", "add", "where")[index % 5], rng)
        question = replace(blank, id=f"question-{index}", text=asked.text, answers=(asked.answer,))
        known.append(Known(question, scene, asked))
    return known


def _attempts(drawn: list[Known], look: Look, seed: int = 0, **imperfections: float) -> list[Trajectory]:
    config = PERFECT.model_copy(update=imperfections)
    teacher = EmbeddedTeacher(config, {item.question.id: (item.scene, item.asked) for item in drawn})
    return rollout(teacher, [item.question for item in drawn], look=look, seed=seed)


def _is_right(item: Known, trajectory: Trajectory) -> bool:
    return matches(extract_answer(trajectory.text), item.question.answers)


def _rate_bounds(rate: float, count: int) -> tuple[float, float]:
    """Four standard errors of a binomial share around its rate: missed by chance once in 16 thousand."""
    margin = 4 * np.sqrt(rate * (1 - rate) / count)
    return rate - margin, rate + margin


def test_a_perfect_teacher_is_right_well_formed_and_looks_at_what_is_asked(drawn, look):
    for item, trajectory in zip(drawn[:60], _attempts(drawn[:60], look)):
        assert trajectory.stop == StopReason.ANSWERED
        assert is_well_formed(trajectory.text)
        assert _is_right(item, trajectory)
        cards = [world.view_box(item.scene.cards[target].box) for target in item.asked.targets]
        assert [box.corners() for box in trajectory.accepted_boxes] == cards


def test_a_perfect_teacher_speaks_the_sentences_of_the_world(drawn, look):
    item = next(item for item in drawn if item.asked.kind == "read")
    (trajectory,) = _attempts([item], look)
    (target,) = item.asked.targets
    card = item.scene.cards[target]
    box = phrases.box_json(world.view_box(card.box))
    spoken = [
        box.join(phrases.with_tags(phrases.read_rationale(manner, card.color, card.code), card.code))
        for manner in range(phrases.NUM_MANNERS)
    ]
    assert trajectory.text + "<|im_end|>" in spoken


def test_the_same_seed_repeats_and_another_differs(drawn, look):
    imperfect = {"box_jitter": 0.2, "muddled_rate": 0.3, "misread_rate": 0.3}
    first = [trajectory.text for trajectory in _attempts(drawn[:40], look, seed=1, **imperfect)]
    again = [trajectory.text for trajectory in _attempts(drawn[:40], look, seed=1, **imperfect)]
    # Neither the order of the questions nor their company matters.
    alone = [_attempts([item], look, seed=1, **imperfect)[0].text for item in drawn[:40][::-1]][::-1]
    other = [trajectory.text for trajectory in _attempts(drawn[:40], look, seed=2, **imperfect)]
    assert first == again == alone
    assert first != other


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_misreads_are_as_frequent_as_configured(drawn, look, rate):
    asked = [item for item in drawn if item.asked.kind == "read"]
    trajectories = _attempts(asked, look, misread_rate=rate)
    wrong = np.mean([not _is_right(item, trajectory) for item, trajectory in zip(asked, trajectories)])
    low, high = _rate_bounds(rate, len(asked))
    assert low < wrong < high


def test_wrong_regions_are_as_frequent_as_configured_and_answer_wrongly(drawn, look):
    asked = [item for item in drawn if item.asked.kind == "read"]
    trajectories = _attempts(asked, look, wrong_region_rate=0.3)
    elsewhere = [
        not covers(trajectory.accepted_boxes[0], item.scene.cards[item.asked.targets[0]], VIEW)
        for item, trajectory in zip(asked, trajectories)
    ]
    low, high = _rate_bounds(0.3, len(asked))
    assert low < np.mean(elsewhere) < high
    # It reads the other card's code, which is the asked one only if both carry the same.
    right_elsewhere = [
        item
        for item, trajectory, is_elsewhere in zip(asked, trajectories, elsewhere)
        if is_elsewhere and _is_right(item, trajectory)
    ]
    assert len(right_elsewhere) <= 2


def test_needless_looks_are_as_frequent_as_configured(drawn, look):
    extra = [
        len(trajectory.accepted_boxes) - len(item.asked.targets)
        for item, trajectory in zip(drawn, _attempts(drawn, look, needless_look_rate=0.25))
    ]
    low, high = _rate_bounds(0.25, len(drawn))
    assert low < np.mean([count == 1 for count in extra]) < high
    assert set(extra) == {0, 1}


def test_muddled_rationales_are_as_frequent_as_configured_and_still_right(drawn, look):
    plain = _attempts(drawn, look)
    muddled = _attempts(drawn, look, muddled_rate=0.3)
    assert all(_is_right(item, trajectory) for item, trajectory in zip(drawn, muddled))
    # The same seed draws the same boxes and manners, so a text differs exactly when it was muddled.
    share = np.mean([before.text != after.text for before, after in zip(plain, muddled)])
    low, high = _rate_bounds(0.3, len(drawn))
    assert low < share < high


def test_junk_is_as_frequent_as_configured(drawn, look):
    trajectories = _attempts(drawn, look, junk_rate=0.3)
    broken = [
        bool(trajectory.errors)
        or trajectory.stop != StopReason.ANSWERED
        or not is_well_formed(trajectory.text)
        for trajectory in trajectories
    ]
    low, high = _rate_bounds(0.3, len(drawn))
    # Three of six kinds of junk need a box: the 20 % of questions without one escape half of the time, and a
    # box in original pixels near the upper left corner is inside the view all the same.
    assert low - 0.3 * 0.2 * 0.5 - 0.02 < np.mean(broken) < high
    errors = Counter(error for trajectory in trajectories for error in trajectory.errors)
    assert {"bad_json", "inverted_box", "outside_image"} <= set(errors)
    stops = Counter(trajectory.stop for trajectory in trajectories)
    assert stops[StopReason.TOKEN_LIMIT] > 0
    assert stops[StopReason.END_WITHOUT_ANSWER] > 0


def test_it_reads_by_geometry(drawn, look):
    """With every box cut in half it can only guess: one letter of ten and one digit of ten, 1 in 100."""
    asked = [item for item in drawn if item.asked.kind == "read"]
    trajectories = _attempts(asked, look, box_growth=-0.3)
    covered = [
        covers(trajectory.accepted_boxes[0], item.scene.cards[item.asked.targets[0]], VIEW)
        if trajectory.accepted_boxes
        else False
        for item, trajectory in zip(asked, trajectories)
    ]
    right = [_is_right(item, trajectory) for item, trajectory in zip(asked, trajectories)]
    assert all(is_right for is_right, is_covered in zip(right, covered) if is_covered)
    blind = [is_right for is_right, is_covered in zip(right, covered) if not is_covered]
    assert len(blind) > 100
    assert np.mean(blind) < 0.06


@pytest.mark.parametrize(
    ("corners", "is_covered"),
    [
        ((28, 30, 40, 38), True),  # the card
        ((31, 32, 37, 36), True),  # original 124..148 x 128..144 holds the ink 126..147 x 130..141
        ((32, 32, 37, 36), False),  # begins at 128, two pixels into the letter
        ((31, 33, 37, 36), False),  # begins at 132
        ((31, 32, 36, 36), False),  # ends at 144
        ((60, 60, 80, 80), False),
    ],
)
def test_a_box_covers_a_code_only_as_a_whole(corners, is_covered):
    assert covers(Box(*corners, space="seen"), CARD, VIEW) is is_covered


def test_boxes_are_generous_by_as_much_as_configured():
    rng = np.random.default_rng(0)
    config = VLIRConfig(box_jitter=0.1, box_growth=0.4)
    boxes = [jittered_box(CARD, seen=SEEN, config=config, rng=rng) for _ in range(500)]
    # The card is 12 x 8 in the view and gains 40 % of a side at each edge: 1.8 * 12 = 21.6, 1.8 * 8 = 14.4.
    assert np.mean([box.width for box in boxes]) == pytest.approx(21.6, abs=0.3)
    assert np.mean([box.height for box in boxes]) == pytest.approx(14.4, abs=0.3)
    # Corners are on the lattice of the world (8 original pixels, 2 in the view), as the base writes them.
    assert all(corner % 2 == 0 and 0 <= corner <= 112 for box in boxes for corner in box.corners())
    assert all(covers(box, CARD, VIEW) for box in boxes)


def test_a_plan_never_looks_where_there_is_nothing():
    scene = world.Scene((CARD,))
    asked = world.WorldQuestion("read", phrases.read_question("blue"), "K7", (0,))
    config = PERFECT.model_copy(update={"needless_look_rate": 1.0, "wrong_region_rate": 1.0})
    plan = make_plan(scene, asked, seen=SEEN, config=config, rng=np.random.default_rng(0))
    assert (len(plan.looks), plan.needless, plan.wrong_region) == (1, False, False)


def test_an_unknown_question_is_an_error(drawn, look):
    teacher = EmbeddedTeacher(PERFECT, {})
    with pytest.raises(EngineError, match="does not know question"):
        rollout(teacher, [drawn[0].question], look=look)
