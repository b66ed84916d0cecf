"""DocVQA: edits over raw length, the threshold, and what the reference does at the edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks import docvqa
from models.errors import ScoringError


def anls(prediction: str, *answers: str) -> float:
    return docvqa.score({"answers": list(answers)}, prediction)["anls"]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Monk", "Monk", 1.0),
        ("  MONK ", "monk", 1.0),
        ("a  b\nc", "a b c", 1.0),
        ("", "", 1.0),
        ("", "monk", 0.0),
        # One edit over four characters.
        ("monks", "monk", 1 - 1 / 5),
        ("mank", "monk", 0.75),
        # Exactly one half is kept, less is not.
        ("ab", "ax", 0.5),
        ("abc", "axx", 0.0),
        # The blanks are no edits, but they lengthen the text: 2 edits over 6 characters.
        ("ab    ", "xy", 1 - 2 / 6),
        # Lengths are of capitals: ß becomes two letters. One edit over 3.
        ("ß", "a", 1 - 1 / 2),
        ("monk.", "monk", 0.8),
    ],
)
def test_similarity(prediction, answer, expected):
    assert anls(prediction, answer) == pytest.approx(expected, rel=0, abs=1e-12)


def test_the_nearest_answer_counts():
    assert anls("1999", "1998", "1999", "x") == 1.0


def test_rows_without_gold_are_refused():
    with pytest.raises(ScoringError, match="test split"):
        anls("x")
    with pytest.raises(ScoringError, match="list of texts"):
        docvqa.score({"answers": None}, "x")


def test_metrics_are_shares_and_percent():
    scores = [{"anls": value} for value in (1.0, 0.5, 0.0, 0.9)]
    found = docvqa.aggregate([{}] * 4, [""] * 4, scores)
    assert found == {
        "lmms_eval_anls_mean": pytest.approx(0.6),
        "vlmevalkit_anls_x100": pytest.approx(60.0),
        "n_zero": 1,
        "n_one": 1,
        "n_exactly_half": 1,
    }


# Any text that JSON can hold, half surrogate pairs included.
texts = st.text(st.characters(), max_size=30)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_any_text_gets_a_similarity(prediction, answers):
    found = anls(prediction, *answers)
    assert found == 0.0 or 0.5 <= found <= 1.0


@given(texts)
def test_a_text_is_most_similar_to_itself(text):
    assert anls(text, text) == 1.0
