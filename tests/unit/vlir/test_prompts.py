import hashlib
from dataclasses import replace

import pytest
from PIL import Image

from models.config import Look
from models.records import Question
from models.region import Box, PixelBudget, Size, View
from models.vlir.prompts import LISTING_1, LISTING_2, ask, box_came_back, box_prompt, question_prompt, to_seen

LOOK = Look(min_pixels=3136, max_pixels=112 * 112, max_crops=2)
IMAGE = Image.new("RGB", (448, 448), (9, 9, 9))
# Of the listings' words in the paper's own text (arXiv 2505.16192v2), one space between them.
LISTING_1_SHA256 = "8a42c2285cd290361d502afe011fa17f9bced582c5cd7150de2821fcf3a29cc5"
LISTING_2_SHA256 = "6e91ec999686d2fdc7749fad0705f62ca28786790712a5f4108a90ed036db7f1"


def question(*corners: tuple[float, float, float, float]) -> Question:
    made = Question.of_image(IMAGE, "what code is {crop} {question}?", id="q", answers=["K7"])
    return replace(made, gold_boxes=tuple(Box(*each, "original") for each in corners))


def digest_of_words(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def test_the_prompts_have_the_words_of_the_paper():
    assert digest_of_words(question_prompt("{question}")) == LISTING_1_SHA256
    box = Box(1, 2, 3, 4, "seen")
    text = box_prompt("{question}", [box]).replace('{"bbox_2d": [1, 2, 3, 4]}', "{crop}")
    assert digest_of_words(text) == LISTING_2_SHA256


def test_without_a_box_the_teacher_is_asked_to_find_one():
    posed = ask(question(), IMAGE, LOOK, "auto")
    assert (posed.prompt_id, posed.operations, posed.refused) == (LISTING_1, (), "")
    assert posed.asked.id == "q"
    assert posed.asked.prompt.system is None
    # The question is the last line, and its braces are no places to fill in.
    assert posed.asked.prompt.text.splitlines()[-1] == "what code is {crop} {question}?"
    assert posed.asked.prompt.pictures[0].size == Size(112, 112)


def test_an_annotated_box_is_given_in_seen_pixels():
    # The picture is seen at a quarter of its sides: 41 / 4 = 10.25, 83 / 4 = 20.75.
    posed = ask(question((41, 83, 200, 400)), IMAGE, LOOK, "auto")
    assert posed.prompt_id == LISTING_2
    assert posed.operations == ('{"bbox_2d": [10, 21, 50, 100]}',)
    assert posed.asked.prompt.system is None
    assert posed.asked.prompt.text.splitlines()[-3:] == [
        "Question:what code is {crop} {question}?",
        '"Crop" operation:{"bbox_2d": [10, 21, 50, 100]}',
        "Now Output the reasoning process:",
    ]


def test_several_boxes_are_several_operations_and_equal_ones_are_one():
    posed = ask(question((0, 0, 80, 80), (200, 200, 400, 400), (0, 0, 80.5, 80)), IMAGE, LOOK, "box")
    assert posed.operations == ('{"bbox_2d": [0, 0, 20, 20]}', '{"bbox_2d": [50, 50, 100, 100]}')
    assert '"Crop" operation:' + "\n".join(posed.operations) + "\nNow" in posed.asked.prompt.text


def test_listing_1_can_be_chosen_for_a_question_with_a_box():
    posed = ask(question((0, 0, 80, 80)), IMAGE, LOOK, "question")
    assert (posed.prompt_id, posed.operations, posed.refused) == (LISTING_1, (), "")


@pytest.mark.parametrize(
    ("corners", "why"),
    [
        ([], "no annotated box"),
        ([(0, 0, 8, 80)], "too small"),  # 2 seen pixels wide
        ([(80, 80, 80, 80)], "encloses nothing"),
        ([(500, 500, 600, 600)], "encloses nothing"),  # nothing is left inside the picture
        ([(0, 0, 400, 400), (0, 0, 400, 392)], "repeats"),  # IoU 98 / 100
        ([(0, 0, 80, 80), (80, 0, 160, 80), (160, 0, 240, 80)], "at most 2 crops"),
    ],
)
def test_a_box_that_the_loop_would_refuse_is_reported_and_not_asked_for(corners, why):
    posed = ask(question(*corners), IMAGE, LOOK, "box")
    assert (posed.prompt_id, posed.operations) == (LISTING_1, ())
    assert why in posed.refused


def test_a_long_box_is_refused_by_its_shape():
    strict = LOOK.model_copy(update={"max_aspect_ratio": 4.0})
    assert "too long" in ask(question((0, 0, 400, 40)), IMAGE, strict, "auto").refused


def test_boxes_are_clipped_to_the_seen_picture():
    view = View.of(Size(100, 50), PixelBudget(3136, 12544))
    (box,) = to_seen([Box(-5, -5, 400, 400, "original")], view)
    assert box.corners() == (0, 0, view.seen.width, view.seen.height)


FIRST, SECOND = '{"bbox_2d": [1, 2, 30, 40]}', '{"bbox_2d": [50, 60, 70, 80]}'


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (f"<think>a {FIRST} b {SECOND} c</think><answer>d</answer>", ""),
        (f"{SECOND}{FIRST}", ""),  # in the teacher's own order
        (f"{FIRST} {FIRST} {SECOND}", ""),  # the loop refuses the repetition by itself
        (FIRST, f"never wrote {SECOND}"),
        ("no look at all {}", f"never wrote {FIRST}"),
        (f"{FIRST} {SECOND} " + '{"bbox_2d": [1, 2, 3, 4]}', "wrote "),
        (f'{FIRST} {{"bbox_2d":[50,60,70,80]}}', "wrote "),  # the same numbers, written otherwise
        (f"{FIRST} {SECOND.replace('80]', '80')}", "wrote "),
        (f"{FIRST} {SECOND.replace('}', ', ' + chr(34) + 'image' + chr(34) + ': 1}')}", "wrote "),
    ],
)
def test_the_given_boxes_must_come_back_unmodified(text, difference):
    found = box_came_back(text, (FIRST, SECOND))
    assert found.startswith(difference)
    assert bool(found) == bool(difference)
