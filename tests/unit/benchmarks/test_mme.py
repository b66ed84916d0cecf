"""MME: the four-character prefix, points per category, incomplete pairs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks import mme
from models.errors import ScoringError


def row(question_id: str = "existence/1.png", answer: str = "Yes", category: str = "existence") -> dict:
    return {"question_id": question_id, "question": "?", "answer": answer, "category": category}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes", "yes"),
        (" YES.", "yes"),
        ("y", "yes"),
        ("N.", "no"),
        ("x", "other"),
        ("", "other"),
        ("...", "other"),
        ("Y e s", "other"),
        # Only the first four characters are read, wherever the word stands in them.
        ("No idea", "no"),
        ("Know", "no"),
        ("Another one", "no"),
        ("Yesterday", "yes"),
        ("I think yes", "other"),
        ("a no", "no"),
        # yes is looked for first, but only in the prefix.
        ("no yes", "no"),
        # Full stops are deleted before the prefix is taken, white space within is not.
        ("n.o.", "no"),
        ("..Yes", "yes"),
    ],
)
def test_the_prefix_decides(text, parsed):
    assert mme.parse(text) == parsed
    assert mme.score(row(answer="No"), text) == {"parsed": parsed, "score": float(parsed == "no")}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes", "yes"),
        ("y", "other"),
        ("  yes", "other"),
        ("..Yes", "other"),
        ("\tyes", "yes"),
        ("n.o.", "other"),
    ],
)
def test_the_official_tool_strips_nothing(text, parsed):
    assert mme.parse_as_official(text) == parsed


def test_points_of_a_category():
    # Two pictures: one with both right, one with one right. Accuracy 3 of 4, pairs 1 of 2: 75 + 50.
    rows = [row("1"), row("1", "No"), row("2"), row("2", "No")]
    assert mme.category_points(rows, [1.0, 1.0, 1.0, 0.0]) == {"existence": pytest.approx(125.0)}


def test_totals_add_up_over_the_parts():
    rows = [row("1"), row("1", "No"), row("1", category="code_reasoning"), row("1", "No", "code_reasoning")]
    texts = ["yes", "no", "yes", "yes"]
    found = mme.aggregate(
        rows, texts, [mme.score(each, text) for each, text in zip(rows, texts, strict=True)]
    )
    # existence: 100 + 100; code reasoning: 50 + 0.
    assert found["lmms_eval"] == {
        "mme_perception_score": 200.0,
        "mme_cognition_score": 50.0,
        "sum": 250.0,
        "per_category": {"existence": 200.0, "code_reasoning": 50.0},
    }


def test_a_pair_without_its_half_is_refused():
    rows = [row("1"), row("1", "No"), row("2")]
    with pytest.raises(ScoringError, match="'2' of existence has 1 predictions"):
        mme.category_points(rows, [1.0, 1.0, 1.0])


def test_rows_of_another_benchmark_are_refused():
    with pytest.raises(ScoringError, match="no category 'colour'"):
        mme.category_points([row(category="colour")], [1.0])
    with pytest.raises(ScoringError, match="must be Yes or No"):
        mme.score(row(answer="maybe"), "yes")
    with pytest.raises(ScoringError, match="no column 'answer'"):
        mme.score({"question": "?"}, "yes")


@given(st.text())
def test_any_text_gets_a_score(text):
    found = mme.score(row(), text)
    assert found["parsed"] in ("yes", "no", "other")
    assert found["score"] in (0.0, 1.0)
    assert mme.parse_as_official(text) in ("yes", "no", "other")
