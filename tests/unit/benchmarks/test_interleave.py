import re

import pytest

from models.benchmarks.interleave import Interleaved, interleave

MARK = re.compile(r"<image (\d+)>")


def shown(found: Interleaved) -> str:
    """The text with a sign at every picture."""
    text = found.text
    for number, place in reversed(list(zip(found.numbers, found.places, strict=True))):
        text = f"{text[:place]}[{number}]{text[place:]}"
    return text


@pytest.mark.parametrize(
    ("text", "numbers", "direct", "look_again"),
    [
        ("What is it?", [], "What is it?", "What is it?"),
        ("What is it?", [1], "[1]What is it?", "[1]What is it?"),
        ("See <image 1>.", [1], "See [1].", "See [1]."),
        # Mentioned again: shown once.
        ("<image 1>: is <image 1> red?", [1], "[1]: is <image 1> red?", "[1]: is <image 1> red?"),
        (
            "Is <image 2> like <image 1>, or <image 2>?",
            [1, 2],
            "Is [2] like [1], or <image 2>?",
            "Is Image 1: [2] like Image 2: [1], or Image 1?",
        ),
        # Not mentioned: before the text. Numbers may have gaps.
        ("Is <image 5> red?", [3, 5], "[3]Is [5] red?", "Image 1: [3]\nIs Image 2: [5] red?"),
        ("Compare.", [1, 2], "[1][2]Compare.", "Image 1: [1]\nImage 2: [2]\nCompare."),
        # A mark without a picture is text.
        ("See <image 2>.", [1], "[1]See <image 2>.", "[1]See <image 2>."),
        ("See <image 2>.", [], "See <image 2>.", "See <image 2>."),
    ],
)
def test_pictures_stand_where_they_are_first_named(text, numbers, direct, look_again):
    assert shown(interleave(text, numbers, MARK, "direct")) == direct
    assert shown(interleave(text, numbers, MARK, "look-again")) == look_again


def test_without_marks_pictures_stand_before_the_text():
    text = "See <image 1>."
    assert interleave(text, [1, 2], None, "direct") == Interleaved(text, (1, 2), (0, 0))
