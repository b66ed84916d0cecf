"""Which option a text names, as VLMEvalKit reads it without a judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks.option_matching import infer_option

CHOICES = {"A": "copper", "B": "brass", "C": "tin", "D": "lead", "E": "gold"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("**B**", "B"),
        ("b", None),
        ("Answer: {E}", "E"),
        # Several letters that stand alone: neither.
        ("A or B", None),
        # A letter counts only among the last four words, at its first place.
        ("B is what I say", None),
        ("B I do say", "B"),
        ("B and then on and on, so B", None),
        # Then the sentence, first match, also inside a word, but no letter after D.
        ("The answer is A, not B", "A"),
        ("the ANSWER is **c** or B or A", "C"),
        ("the answer is bronze", "B"),
        ("The answer is E, not A", None),
        # Then the text of exactly one option, unless the answer is more than twice as long as all of them.
        ("It is BRASS", "B"),
        ("brass or tin", None),
        ("brass, " + "as far as I can see in this picture here, I think", None),
        # Refusals.
        ("Z", "Z"),
        ("Cannot determine the answer: B", "Z"),
        ("cannot determine the answer: B", "B"),
        ("Failed to obtain answer via API B", None),
        ("", None),
    ],
)
def test_what_a_text_names(text, letter):
    assert infer_option(text, CHOICES) == letter


def test_an_option_is_named_by_text_after_a_failed_call():
    assert infer_option("Failed to obtain answer via API", {"A": "obtain answer via", "B": "x" * 9}) == "A"


@given(st.text())
def test_any_text_names_an_option_or_none(text):
    assert infer_option(text, CHOICES) in {*CHOICES, "Z", None}
