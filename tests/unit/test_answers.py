"""The one answer matcher."""

import pytest

from models.answers import MAX_ANSWER_CHARACTERS, matches


@pytest.mark.parametrize(
    ("prediction", "golds"),
    [
        ("K7", ["K7"]),
        (" k7. ", ["K7"]),
        ("The  Red Card", ["red card"]),
        ("12", ["12.0"]),
        ("1,200", ["1200"]),
        (".5", ["0.5"]),
        ("-3", ["-3.00"]),
        ("umbrella", ["parasol", "umbrella"]),
        ("\uff21\uff11", ["A1"]),
        ('"yes"', ["Yes"]),
    ],
)
def test_equal_answers(prediction, golds):
    assert matches(prediction, golds)


@pytest.mark.parametrize(
    ("prediction", "golds"),
    [
        (None, ["K7"]),
        ("", ["K7"]),
        ("", [""]),
        (".", ["!"]),
        ("K7 or K8", ["K7"]),
        ("know", ["no"]),
        ("12", ["13"]),
        ("5", ["-5"]),
        ("1.20", ["120"]),
        ("K7" + " " * 10 + "x" * MAX_ANSWER_CHARACTERS, ["K7"]),
    ],
)
def test_different_answers(prediction, golds):
    assert not matches(prediction, golds)


def test_a_row_without_gold_cannot_be_scored():
    with pytest.raises(ValueError, match="No gold answer"):
        matches("K7", [])
