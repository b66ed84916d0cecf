"""The rule of MathVista on cases worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.benchmarks.mathvista import (
    SCORER,
    is_right_by_lmms,
    is_right_by_vlmevalkit,
    normalised,
    quoted_answer,
    score,
)
from models.errors import ScoringError

METADATA = {
    "language": "english",
    "source": "IQTest",
    "category": "general-vqa",
    "task": "figure question answering",
    "context": "table",
    "grade": "college",
    "skills": ["logical reasoning", "algebraic reasoning"],
}


def row(answer_type="integer", answer="25", **columns):
    base = {
        "pid": "1",
        "question_type": "free_form",
        "answer_type": answer_type,
        "answer": answer,
        "choices": None,
        "precision": None,
        "query": "Question: How many?",
        "metadata": METADATA,
    }
    return {**base, **columns}


def choice(answer="Blue", choices=("Red", "Blue", "Dark Red"), **columns):
    return row("text", answer, question_type="multi_choice", choices=list(choices), **columns)


@pytest.mark.parametrize(
    ("each", "text", "extraction"),
    [
        (row(), " 25 ", "25"),
        (row(), "1_000", "1000"),
        (row(), "25.0", ""),
        (row("float", "2.5", precision=1.0), "2.50", "2.5"),
        (row("list", "[1, 2]"), "[1, 2]", ""),
        (choice(), "Blue", "Blue"),
        (choice(), "blue", ""),
        (choice(), 'So: The answer is "(B)".', "(B)"),
        (choice(), 'The answer is "A". The answer is "B".', 'A". The answer is "B'),
        (choice(), 'The answer is "B"', ""),
    ],
)
def test_extraction_by_the_quick_rules(each, text, extraction):
    assert SCORER.score(each, text)["extraction"] == extraction


def test_needs_are_reported_with_and_without_the_quick_rule():
    found = SCORER.score(row(), 'The answer is "25".')
    assert (found["needs_llm_quick"], found["needs_llm_default"]) == (False, True)
    found = SCORER.score(row(), "It is 25.")
    assert (found["needs_llm_quick"], found["needs_llm_default"], found["true_false"]) == (True, True, False)


def test_empty_text_needs_no_model():
    assert SCORER.score(row(), "")["needs_llm_default"] is False


@pytest.mark.parametrize(
    ("each", "extraction", "meant"),
    [
        (row(), "25.9", "25"),  # Cut off, not rounded.
        (row(), "1e3", "1000"),
        (row(), "inf", None),
        (row(), "25 cm", None),
        (row("float", "2.5", precision=1.0), "2.45", "2.5"),  # 2.45 lies above the half in binary.
        (row("float", "2.5", precision=1.0), "2", "2.0"),
        (row("float", "2.5", precision=1.0), "nan", "nan"),
        (row("float", "2.5", precision=None), "2.5", None),
        (row("list", "[1, 2]"), "[1,2]", "[1,2]"),
        (choice(), "(b) because", "Blue"),
        (choice(), " C ", "Dark Red"),
        (choice(), "Z", "Red"),  # Three edits from Red, four from Blue.
        (choice(), "(Z)", "Red"),
        (choice(), "Dark Blue", "Dark Red"),  # Four edits; Blue needs five.
        (choice(), "", "Red"),
    ],
)
def test_normalised_extraction(each, extraction, meant):
    assert normalised(each, extraction) == meant


def test_extracted_answer_comes_as_it_is():
    found = SCORER.score({**choice(), "kind": "extraction"}, "(B)")
    assert found == {
        "extraction": "(B)",
        "needs_llm_quick": None,
        "needs_llm_default": None,
        "normalized": "Blue",
        "true_false": True,
    }


def test_unknown_kind_is_refused():
    with pytest.raises(ScoringError, match="kind"):
        SCORER.score({**choice(), "kind": "guess"}, "B")


def test_what_a_model_extracted_counts_only_where_the_rules_find_nothing():
    assert SCORER.score(row(), "24") == score(row(), "24", by_model="25")
    assert not SCORER.score(row(), "It is 25.")["true_false"]
    found = score(row(), "It is 25.", by_model="25")
    assert found["true_false"]
    assert found["needs_llm_quick"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('a\nThe answer is "b".\nThe answer is "c".', "b"),
        ('The answer is "x\ny".', None),
        ('The answer is "".', ""),
    ],
)
def test_quoted_answer(text, answer):
    assert quoted_answer(text) == answer


def test_lmms_ignores_blanks_at_the_ends():
    assert is_right_by_lmms(row("list", "[1, 2]"), " [1, 2]")
    assert not SCORER.score({**row("list", "[1, 2]"), "kind": "extraction"}, " [1, 2]")["true_false"]


@pytest.mark.parametrize(
    ("each", "extraction", "right"),
    [
        (row(), "25", True),
        (row(), "25.6", False),
        (row("float", "2.5", precision=1.0), "2.50", True),
        (row("float", "2.5", precision=1.0), "2.51", False),
        (row("list", "[1, 2]"), "[1, 2]", False),
        (choice(), "The answer is B", True),
        (choice(), "", False),
    ],
)
def test_vlmevalkit(each, extraction, right):
    assert is_right_by_vlmevalkit(each, extraction) is right


def test_accuracy_and_breakdowns():
    rows = [row(), choice(metadata={**METADATA, "skills": ["logical reasoning"]})]
    texts = ["25", "no idea"]
    scores = [SCORER.score(each, text) for each, text in zip(rows, texts, strict=True)]
    found = SCORER.aggregate(rows, texts, scores)
    assert found["official"]["average"] == {"accuracy": 0.5, "correct": 1, "total": 2}
    assert found["official"]["skills"] == {
        "algebraic reasoning": {"accuracy": 1.0, "correct": 1, "total": 1},
        "logical reasoning": {"accuracy": 0.5, "correct": 1, "total": 2},
    }
    assert list(found["official"]["answer_type"]) == ["integer", "text"]
    assert SCORER.counts(rows, texts, scores) == {
        "needs_llm": 1,
        "needs_llm_without_quick_rule": 1,
        "option_nearest_to_nothing": 1,
    }


@pytest.mark.parametrize("choices", [None, [], [1]])
def test_multiple_choice_without_options_is_refused(choices):
    with pytest.raises(ScoringError, match="choices"):
        SCORER.score({**choice(), "choices": choices}, "B")


@settings(deadline=None)  # The machine may be busy.
@given(
    st.text() | st.text(alphabet='ABC()".The answsi\n0123456789e-'),
    st.sampled_from(["response", "extraction"]),
)
def test_any_text_is_scored_the_same_twice(text, kind):
    for each in (row(), row("float", "2.5", precision=1.0), row("list", "[1]"), choice()):
        line = {**each, "kind": kind}
        assert SCORER.score(line, text) == SCORER.score(line, text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["9" * 10**6, 'The answer is "' * 60_000, 'The answer is "' + "x" * 10**6 + '".']
)
def test_a_megabyte_is_scored_in_seconds(text):
    for each in (row(), row("float", "2.5", precision=1.0), choice()):
        SCORER.score(each, text)
        SCORER.score({**each, "kind": "extraction"}, text)
