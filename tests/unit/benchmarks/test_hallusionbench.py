"""HallusionBench: groups, unknown answers, and the authors' metric from a judge's verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.benchmarks import hallusionbench
from models.benchmarks.hallusionbench import aggregate, counts, score
from models.errors import ScoringError


def row(category: str = "VD", figure: str = "0", question: str = "0", **fields: str) -> dict:
    return {
        "category": category,
        "subcategory": "ocr",
        "visual_input": "1",
        "set_id": "0",
        "figure_id": figure,
        "question_id": question,
        "gt_answer": "1",
        **fields,
    }


def metrics(rows: list[dict], texts: list[str]) -> dict:
    return aggregate(rows, texts, [score(each, text) for each, text in zip(rows, texts, strict=True)])


def test_unknown_is_wrong_and_counted():
    rows = [row(), row(figure="1"), row("VS", visual_input="0", gt_answer="0")]
    texts = ["yes", "yes or no", "maybe"]
    scores = [score(each, text) for each, text in zip(rows, texts, strict=True)]
    assert scores == [
        {"parsed": "Yes", "score": True},
        {"parsed": "Unknown", "score": False},
        {"parsed": "Unknown", "score": False},
    ]
    assert counts(rows, texts, scores) == {"unknown": 2, "unknown_image_rows": 1}


def test_accuracies_of_questions_figures_and_sets():
    # Two figures x two questions; one of the four is wrong. Figure 0 is all right, so is question 0.
    rows = [row(figure=figure, question=question) for figure in "01" for question in "01"]
    found = metrics(rows, ["yes", "yes", "yes", "no"])["vlmevalkit_exact_image_rows"]
    assert found["Overall"] == {"aAcc": 75.0, "fAcc": 50.0, "qAcc": 50.0}
    assert found["average_of_three"] == pytest.approx(175 / 3)
    assert found["VD"] == found["VD_ocr"] == found["Overall"]


def test_the_category_is_part_of_the_group():
    # Both categories have a subcategory ocr: the right answers of one must not be dragged down by the other.
    found = metrics([row("VD"), row("VS")], ["yes", "no"])["vlmevalkit_exact_image_rows"]
    assert found["Overall"] == {"aAcc": 50.0, "fAcc": 50.0, "qAcc": 50.0}


def test_rows_without_picture_stay_out_of_the_headline():
    found = metrics([row(), row("VS", visual_input="0")], ["yes", "no"])
    assert found["vlmevalkit_exact_image_rows"]["Overall"]["aAcc"] == 100.0
    assert found["vlmevalkit_exact_all_rows"] == {
        "n_rows": 2,
        "Overall": {"aAcc": 50.0, "fAcc": 50.0, "qAcc": 50.0},
    }
    assert (
        metrics([row(visual_input="0")], ["yes"])["vlmevalkit_exact_image_rows"]["average_of_three"] is None
    )


def test_the_substring_rule_sees_yes_in_eyes():
    found = metrics([row(), row(figure="1", gt_answer="0")], ["eyes", "I do not know"])
    assert found["lmms_eval_intern_image_rows"] == {"aAcc": 1.0, "fAcc": 1.0, "qAcc": 1.0}


def test_the_judge_is_asked_for_every_row_or_not_at_all():
    assert "official_judge_all_rows" not in metrics([row(judge_verdict="1"), row(figure="1")], ["yes", "yes"])


def test_unclear_is_right_only_without_an_optional_picture():
    rows = [
        row("VS", visual_input="0", judge_verdict="2"),  # right: there is nothing to see
        row("VS", figure="1", judge_verdict="2"),  # wrong
        row("VS", figure="2", visual_input="2", judge_verdict="1"),  # right
        row("VD", judge_verdict="2"),  # wrong
    ]
    found = metrics(rows, ["yes"] * 4)
    assert found["official_judge_all_rows"] == {
        "n_rows": 4,
        "aAcc": 50.0,
        # Figure 0 of VS is none; of the others one of three is right.
        "fAcc": 33.3333,
        "qAcc": 0.0,
        "fig_total": 3,
        "pair_total": 2,
        "fig_inconsistent": 0,
        "fig_wrong": 2,
        # Easy: VS (one right, one wrong) and VD (wrong); hard: the changed figure.
        "easy_aAcc": 0.0,
        "hard_aAcc": 100.0,
    }
    assert found["official_judge_image_rows"]["n_rows"] == 3


def test_bad_rows_are_refused():
    with pytest.raises(ScoringError, match="must be 0"):
        score(row(gt_answer="yes"), "yes")
    with pytest.raises(ScoringError, match="judge_verdict is 'correct'"):
        metrics([row(judge_verdict="correct")], ["yes"])


@given(st.text())
def test_any_text_gets_a_score(text):
    found = score(row(), text)
    assert found["parsed"] in ("Yes", "No", "Unknown")
    assert found["score"] is (found["parsed"] == "Yes")
    assert hallusionbench.accuracies([(row(), found["score"])])["aAcc"] in (0.0, 100.0)
