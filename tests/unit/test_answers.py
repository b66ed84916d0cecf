import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.answers import MAX_ANSWER_CHARACTERS, matches, normalise

SAME = [
    ("K7", "K7"),
    ("k7", "K7"),
    (" K7. ", "K7"),
    ('"K7"', "K7"),
    ("K7!", "K7"),
    ("the red card", "Red card"),
    ("A cat", "cat"),
    ('the "cat"', "cat"),
    ("two  words", "two words"),
    ("two\nwords", "two words"),
    ("(b)", "B"),
    ("\uff21\uff22", "ab"),  # full-width letters
    ("12", "12.0"),
    ("1,234", "1234"),
    ("+5", "5"),
    (".5", "0.5"),
    ("007", "7"),
    ("-3", "-3.00"),
    ("10\u00b2", "10^2"),
    ("10\u207b\u00b9\u00b2", "10^-12"),
    ("25 m\u00b2", "25 m2"),
    ("CO\u2082", "co2"),
    ("\u22123", "-3.0"),
]
DIFFERENT = [
    ("K7", "K1"),
    ("K", "K7"),
    ("K7 or K1", "K7"),
    ("no", "know"),
    ("know", "no"),
    ("12", "21"),
    ("-3", "3"),
    ("1,23", "123"),  # no group of three: not a number with a thousands separator
    ("1.2.3", "1.23"),
    ("", "K7"),
    ("...", "K7"),
    ("12 cards", "12"),
    ("10\u00b2", "102"),
    ("3\u2074", "34"),
    ("10\u2082", "102"),
]


@pytest.mark.parametrize(("prediction", "gold"), SAME)
def test_the_same_answer(prediction, gold):
    assert matches(prediction, [gold])
    assert matches(gold, [prediction])


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_another_answer(prediction, gold):
    assert not matches(prediction, [gold])


def test_any_gold_answer_counts():
    assert matches("seven", ["7", "seven"])
    assert not matches("eight", ["7", "seven"])


def test_no_answer_matches_nothing():
    assert not matches(None, ["K7"])


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("是。", "是"),
        ("“K7”", "K7"),
        ("«oui»", "oui"),
        ("¿sí?", "sí"),
        ("「東京」", "東京"),
        ("don\u2019t", "don't"),
        ("K\u20137", "K-7"),
        ("?", "?"),
        ("…", "..."),
    ],
)
def test_marks_of_any_script_around_an_answer_do_not_matter(prediction, gold):
    assert matches(prediction, [gold])
    assert matches(gold, [prediction])


@pytest.mark.parametrize(("prediction", "gold"), [("50%", "50"), ("5\u2032", "5"), ("5‰", "5"), ("§5", "5")])
def test_marks_that_say_something_stay(prediction, gold):
    assert not matches(prediction, [gold])


def test_an_answer_of_punctuation_does_not_match_another():
    assert not matches("?", ["!"])
    assert not matches("", [""])


def test_an_essay_that_contains_the_gold_answer_does_not_match():
    assert matches("K7" + " " * (MAX_ANSWER_CHARACTERS - 2), ["K7"])
    assert not matches("K7" + " " * MAX_ANSWER_CHARACTERS, ["K7"])


def test_a_row_without_gold_must_not_be_scored():
    with pytest.raises(ValueError, match="No gold answer"):
        matches("K7", [])


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=200))
def test_an_answer_matches_itself_or_is_blank(text):
    assert matches(text, [text]) is bool(unicodedata.normalize("NFKC", text).strip())


@given(st.integers(-(10**12), 10**12))
def test_numbers_match_by_value(value):
    assert matches(f"{value:,}", [str(value)])
    assert matches(f"{value}.0", [str(value)])
    assert not matches(str(value), [str(value + 1)])
