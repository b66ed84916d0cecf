"""ScienceQA: what each rule accepts, and how often none could tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks import scienceqa
from models.errors import ScoringError

ROW = {"choices": ["copper", "brass", "tin"], "answer": 1, "image": None}


@pytest.mark.parametrize(
    ("text", "lmms", "may2025", "llava", "lenient"),
    [
        ("B", True, True, True, True),
        ("b", True, True, False, False),
        (" B\n", True, True, False, True),
        ("B.", True, False, False, True),
        ("B. brass", True, False, True, True),
        ("b. brass", False, False, False, True),
        ("B.brass", True, False, False, True),
        ("(B)", False, False, False, True),
        ("B) brass", False, False, False, True),
        ("The answer is B.", False, False, True, True),
        ("The answer is B", False, False, False, True),
        ("The answer is B. The answer is C.", False, False, False, True),
        ("brass", False, False, False, True),
        ("brass or tin", False, False, False, False),
        ("C", False, False, False, False),
        ("", False, False, False, False),
        # The sentence rule reads the first letter of a word.
        ("the answer is bronze", False, False, False, True),
    ],
)
def test_what_the_rules_accept(text, lmms, may2025, llava, lenient):
    assert scienceqa.score(ROW, text) == {"target": "B", "score": float(lmms)}
    assert scienceqa.lmms_may2025(ROW, text) is may2025
    assert scienceqa.llava(ROW, text) is llava
    assert scienceqa.lenient(ROW, text) is lenient


def test_what_could_not_be_parsed_is_counted_and_wrong():
    rows, texts = [ROW, ROW, ROW], ["I cannot tell", "The answer is B.", "The answer is E."]
    scores = [scienceqa.score(row, text) for row, text in zip(rows, texts, strict=True)]
    found = scienceqa.counts(rows, texts, scores)
    # The first text names nothing. The letter E is no option of the question, so the authors' script guesses.
    assert found == {"lenient_unparsed": 2, "official_random_fallback": 2}


def test_accuracy_with_and_without_picture():
    rows = [ROW, {**ROW, "image": {"bytes": b"", "path": None}}]
    texts = ["B", "C"]
    found = scienceqa.aggregate(rows, texts, [scienceqa.score(ROW, text) for text in texts])
    assert found["all_rows"]["lmms_eval_exact_match"] == 50.0
    assert found["image_rows"] == {
        "n": 1,
        "lmms_eval_exact_match": 0.0,
        "lmms_eval_2025-05-19_5a1a31c8": 0.0,
        "llava_eval_science_qa": 0.0,
        "vlmevalkit_exact": 0.0,
    }
    assert found["llava_stdout"] == "Total: 2, Correct: 1, Accuracy: 50.00%, IMG-Accuracy: 0.00%"


def test_no_picture_at_all_is_no_accuracy():
    found = scienceqa.aggregate([ROW], ["B"], [scienceqa.score(ROW, "B")])
    assert found["image_rows"]["lmms_eval_exact_match"] is None
    assert found["llava_stdout"].endswith("IMG-Accuracy: n/a%")


@pytest.mark.parametrize("answer", [3, -1, None, "B"])
def test_an_answer_that_names_no_option_is_refused(answer):
    with pytest.raises(ScoringError, match="index of one of its 3 options"):
        scienceqa.score({**ROW, "answer": answer}, "B")


def test_choices_that_are_no_list_are_refused():
    with pytest.raises(ScoringError, match="list of texts"):
        scienceqa.score({"choices": "copper", "answer": 0}, "B")


@given(st.text())
def test_any_text_gets_a_score(text):
    assert scienceqa.score(ROW, text)["score"] in (0.0, 1.0)
    assert scienceqa.llava(ROW, text) in (True, False)
    assert scienceqa.lenient(ROW, text) in (True, False)
