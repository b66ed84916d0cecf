"""The judges of the drawn world: clear cases by hand, and how often they err."""

from collections import Counter

import numpy as np
import pytest

from models.config import Look, QuestionMix, VLIRConfig
from models.crops import crop_from_original
from models.region import Box, Size, View, find_fault, snap_outwards
from models.rollout import Asked
from models.tiny import world
from models.tiny.teacher import EmbeddedTeacher, jittered_box
from models.vlir.drawn import draw_questions
from models.vlir.entries import Ready
from models.vlir.filters import Judges
from models.vlir.generate import Task, Teacher, generate
from models.vlir.judges import coherence_prompt, semantic_unit_prompt
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge, find_incoherence, holds_one_card

KINDS = {"read": 0.6, "add": 0.25, "where": 0.15}
VIEW = View(Size(448, 448), Size(112, 112))
CARD = world.Card("blue", (112, 120, 160, 152), "K7", (126, 130, 147, 141))
NEIGHBOUR = world.Card("red", (176, 120, 224, 152), "A3", (190, 130, 211, 141))
PICTURE = world.draw(world.Scene((CARD, NEIGHBOUR)))


def _crop(corners: tuple[int, int, int, int], look: Look) -> np.ndarray:
    """The crop of a box in original pixels."""
    box = VIEW.convert(Box(*corners, space="original"), "seen")
    picture, _ = crop_from_original(PICTURE, box, look.budget, np.random.default_rng(0))
    return np.asarray(picture.image)


@pytest.mark.parametrize(
    ("corners", "is_unit"),
    [
        ((112, 120, 160, 152), True),  # the card
        ((104, 112, 168, 160), True),  # the card with some background
        ((120, 124, 152, 148), True),  # tight around the code
        ((112, 120, 136, 152), False),  # cuts the code in the middle
        ((140, 120, 168, 152), False),  # only the right end of the code
        ((112, 136, 160, 152), False),  # only its lower half
        ((112, 120, 124, 152), False),  # a piece of card without a code
        ((16, 16, 80, 80), False),  # background
        ((112, 120, 224, 152), False),  # two cards
    ],
)
def test_a_unit_is_one_card_with_its_whole_code(corners, is_unit, look):
    pixels = _crop(corners, look)
    assert holds_one_card(pixels) is is_unit


def test_the_semantic_unit_judge_speaks_the_protocol(look):
    crops = [
        crop_from_original(PICTURE, Box(*corners, space="seen"), look.budget, np.random.default_rng(0))[0]
        for corners in ((28, 30, 40, 38), (4, 4, 20, 20))
    ]
    prompts = [semantic_unit_prompt(crop) for crop in crops]
    assert SemanticUnitJudge().ask(prompts, attempt=0) == ["yes", "no"]


def test_semantic_unit_judge_errs_rarely(look):
    """Against geometry: a crop is a unit when it covers exactly one code and cuts none.

    It refuses units whose code touches the border, which looks like a cut, and passes a crop whose border
    takes no more than a faint row of the code.
    """
    rng = np.random.default_rng(2024)
    wrong = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for _ in range(200):
        scene = world.sample_scene(rng, "train")
        picture = world.draw(scene)
        for box in _boxes(scene, rng):
            if find_fault(box, VIEW, min_side=4, max_aspect_ratio=10, repeated_iou=0.7):
                continue
            crop, _ = crop_from_original(picture, box, look.budget, rng)
            truth = _is_unit(box, scene)
            total[truth] += 1
            wrong[truth] += holds_one_card(np.asarray(crop.image)) != truth
    assert min(total.values()) > 200
    assert wrong[True] / total[True] < 0.10
    assert wrong[False] / total[False] < 0.08


def _boxes(scene: world.Scene, rng: np.random.Generator) -> list[Box]:
    """Two boxes like the teacher's, one wild, one anywhere."""
    card = scene.cards[int(rng.integers(len(scene.cards)))]
    wild = VLIRConfig(box_jitter=0.4, box_growth=0.2)
    x, y = (float(value) for value in 2 * rng.integers(0, 45, 2))
    width, height = (float(value) for value in 2 * rng.integers(2, 25, 2))
    anywhere = Box(x, y, min(112.0, x + width), min(112.0, y + height), "seen")
    mild = [jittered_box(card, seen=VIEW.seen, config=VLIRConfig(), rng=rng) for _ in range(2)]
    return [*mild, jittered_box(card, seen=VIEW.seen, config=wild, rng=rng), anywhere]


def _is_unit(box: Box, scene: world.Scene) -> bool:
    crop = snap_outwards(VIEW.convert(box, "original"), VIEW.original)
    shares = [crop.coverage_of(Box(*card.text_box, space="original")) for card in scene.cards]
    return sorted(share for share in shares if share > 0) == [1.0]


READ = "what code is on the blue card?"
ADD = "what is the sum of the numbers on the blue card and the red card?"
WHERE = "in which quarter of the picture is the blue card?"
BOX = '{"bbox_2d": [28, 30, 40, 38]}'


@pytest.mark.parametrize(
    ("question", "answer", "thought", "fault"),
    [
        (READ, "K7", f"I look closer at the blue card. {BOX} It says K7.", ""),
        (ADD, "10", f"The blue card. {BOX} It says K7. Next the red card. {BOX} It says A3. 7 + 3 = 10.", ""),
        (ADD, "14", f"The blue card. {BOX} It says K7. Next the red card. {BOX} It says K7. 7 + 7 = 14.", ""),
        (WHERE, "top left", "I see the blue card at the top left of the picture.", ""),
        (READ, "K7", f"I look closer at the blue card. {BOX} It says K7. It says K7.", "repeats itself"),
        (READ, "K7", f"I look closer at the blue card. {BOX} It says K3.", "reads ['K3'] but answers K7"),
        (READ, "K7", f"I look closer at the blue card. {BOX}", "does not say what a crop shows"),
        (READ, "K7", f"I look closer. {BOX} It says K7.", "looks without saying for what"),
        (READ, "K7", "It says K7.", "looks at nothing, should look at blue"),
        (
            READ,
            "K7",
            f"I look at the red card. {BOX} It says A3. I look at the blue card. {BOX} It says K7.",
            "looks at red, blue, should look at blue",
        ),
        (
            READ,
            "K7",
            f"I look closer at the blue card. {BOX} It says K7. The weather must have been nice that day.",
            "beside the point: the weather must have been nice that day.",
        ),
        (
            READ,
            "K7",
            f"I look closer at the blue card. {BOX} It says K7. It says A3.",
            "reads one crop in two ways",
        ),
        (
            ADD,
            "10",
            f"The blue card. {BOX} It says K7. Next the red card. {BOX} It says A3. 7 + 3 = 11.",
            "says 7 + 3 = 11",
        ),
        (
            ADD,
            "10",
            f"The blue card. {BOX} It says K7. Next the red card. {BOX} It says A4. 7 + 3 = 10.",
            "adds 7 and 3 after reading ['K7', 'A4']",
        ),
        (
            ADD,
            "10",
            f"The blue card. {BOX} It says K7. Next the red card. {BOX} It says A3.",
            "does not add once",
        ),
        (
            WHERE,
            "top left",
            f"The blue card. {BOX} It says K7. The blue card is at the top left.",
            "looks at blue, should look at nothing",
        ),
        (
            WHERE,
            "top left",
            "The blue card is at the top right.",
            "says ['blue', 'top right'] but answers top left",
        ),
        (
            WHERE,
            "top left",
            "The red card is at the top left.",
            "says ['red', 'top left'] but answers top left",
        ),
        (
            WHERE,
            "top left",
            "I see cards. There is a card. I look. I read. So the blue card is at the top left.",
            "too long",
        ),
    ],
)
def test_coherence_is_read_from_the_words(question, answer, thought, fault):
    text = f"<think>{thought}</think><answer>{answer}</answer>"
    assert find_incoherence(question, answer, text) == fault
    reply = CoherenceJudge().ask([coherence_prompt(question, answer, text)], attempt=0)
    assert reply == ["no" if fault else "yes"]


def test_coherence_judge_errs_rarely(perfect, look):
    """Against the teacher's own knowledge of what it muddled, on tries that passed every cheap rule.

    What it misses is rambling about cards: "This card was surely printed with care."
    """
    drawn = list(draw_questions("train", QuestionMix(num_questions=150, kinds=KINDS), seed=77))
    scenes = {item.question.id: (item.scene, item.asked) for item in drawn}
    questions = [item.question for item in drawn]
    judges = Judges(SemanticUnitJudge(), CoherenceJudge())

    def share_incoherent(config: VLIRConfig) -> float:
        teacher = Teacher(EmbeddedTeacher(config, scenes), "embedded", 128)
        tasks = (Task(Ready(each, Asked.of(each, look), "question"), 0, 1, None) for each in questions)
        counts: Counter[str] = Counter()
        for tried in generate(teacher, tasks, look=look, judges=judges, num_samples=1):
            counts += tried.judge_counts
        return counts["coherence/no"] / counts["coherence/asked"]

    assert share_incoherent(perfect) == 0
    assert share_incoherent(perfect.model_copy(update={"muddled_rate": 1.0})) > 0.9
    assert share_incoherent(perfect.model_copy(update={"needless_look_rate": 1.0})) == 1
