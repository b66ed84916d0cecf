"""Whole words after the punctuation rule, slips included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks.yes_or_no import without_punctuation, yes_or_no


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", "Yes"),
        ("yes.", "Yes"),
        ("NO, it is not", "No"),
        ("I think yes", "Yes"),
        ("yes and no", "Unknown"),
        ("", "Unknown"),
        ("eyes", "Unknown"),
        ("nothing", "Unknown"),
        # No mark beside a space, so every mark becomes one: "answer no answer".
        ("<answer>No</answer>", "No"),
        # The slash and the brackets stand beside spaces somewhere, so they vanish: "answerno".
        ("< answer>No</answer> / ", "Unknown"),
        # Typographic marks are none of the list.
        ("“no”", "Unknown"),
        ("no。", "Unknown"),
        # A full stop before a digit stays in the word.
        ("no.5", "Unknown"),
        # A number with a comma makes every mark vanish.
        ("1,000:yes!no", "Unknown"),
    ],
)
def test_whole_words_decide(text, verdict):
    assert yes_or_no(text) == verdict


def test_marks_become_spaces_or_nothing():
    assert without_punctuation("a-b") == "a b"
    assert without_punctuation("a- b-c") == "a bc"
    assert without_punctuation("1,5 a-b") == "15 ab"


def test_only_32_full_stops_are_removed():
    assert without_punctuation("no" + "." * 33) == "no."
    assert yes_or_no("no" + "." * 32) == "No"
    assert yes_or_no("no" + "." * 33) == "Unknown"


@given(st.text())
def test_any_text_gets_a_verdict(text):
    assert yes_or_no(text) in ("Yes", "No", "Unknown")
