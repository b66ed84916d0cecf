"""HallusionBench (lmms-lab/HallusionBench): yes-or-no questions in sets, 951 with a picture, 178 without.

The score follows open-compass/VLMEvalKit @e8e78f05 without a judge (vlmeval/dataset/utils/yorn.py): whole
words decide, and a text that says both or neither is unknown and counted as wrong. ``Hallusion_rating`` of
the same file sums up the rows with a picture: aAcc is the share of right questions, fAcc of figures and qAcc
of questions (asked about several figures) of which everything is right, all in percent; their mean is the
usual single number.

Beside it, over the same predictions:

* the rule that EvolvingLMMs-Lab/lmms-eval @75571cfe ships and does not use (``hb_aggregation_result_intern``
  of lmms_eval/tasks/hallusion_bench/evaluate_hb.py): "yes" anywhere, even in "eyes", else no. Shares, not
  percent. It flatters: 57 % of the answers are no.
* the authors' metric (tianyi-lab/HallusionBench @744007c2, utils.py and evaluation.py), when every row has
  the verdict of a judge in ``judge_verdict``: 0 incorrect, 1 correct, 2 unclear. Rounded to four decimals.

With a judge (``JUDGING``) every text gets the authors' verdict (``evaluate_by_chatgpt`` of utils.py, in our
words): does it conflict with the reference answer in ``gt_answer_details``? The same verdicts also decide, as
in VLMEvalKit, the rows in which the words do not.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from models.benchmarks.judging import GUARD, Judging, read_word
from models.benchmarks.published import PublishedSet
from models.benchmarks.scorer import Row, Score, Scorer, column, percent
from models.benchmarks.yes_or_no import yes_or_no
from models.errors import ScoringError

# A row and whether it was answered rightly.
Judged = tuple[Row, bool]

_ANSWERS = {"0": "No", "1": "Yes"}
_DECIMALS = 4


def score(row: Row, prediction: str) -> Score:
    """``parsed`` (Yes, No or Unknown) and ``score`` (true when it is the answer)."""
    parsed = yes_or_no(prediction)
    return {"parsed": parsed, "score": parsed == _ANSWERS[_gold(row)]}


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """Every metric that the rows allow, see the module's docstring."""
    judged = [(row, found["score"]) for row, found in zip(rows, scores, strict=True)]
    pictured = [(row, right) for row, right in judged if has_image(row)]
    overall = accuracies(pictured)
    metrics: dict[str, Any] = {
        "vlmevalkit_exact_image_rows": {
            "n_rows": len(pictured),
            "Overall": overall,
            **_by_group(pictured, lambda row: str(column(row, "category"))),
            **_by_group(pictured, _topic),
            "average_of_three": _mean(overall.values()),
        },
        "vlmevalkit_exact_all_rows": {"n_rows": len(judged), "Overall": accuracies(judged)},
        "lmms_eval_intern_image_rows": _substring_shares(rows, predictions),
    }
    if all("judge_verdict" in row for row in rows):
        verdicts = [(row, _is_right_by_judge(row)) for row in rows]
        metrics["official_judge_all_rows"] = {**_official(verdicts), **_easy_and_hard(verdicts)}
        metrics["official_judge_image_rows"] = _official([each for each in verdicts if has_image(each[0])])
    return metrics


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many texts said neither yes nor no, or both: in all rows, and in those with a picture."""
    unknown = [row for row, found in zip(rows, scores, strict=True) if found["parsed"] == "Unknown"]
    return {"unknown": len(unknown), "unknown_image_rows": sum(map(has_image, unknown))}


def has_image(row: Row) -> bool:
    """True when the question is asked about a picture."""
    return str(column(row, "visual_input")) != "0"


def accuracies(judged: Sequence[Judged]) -> dict[str, float | None]:
    """aAcc, fAcc and qAcc in percent; None without rows."""
    return {
        "aAcc": percent(right for _, right in judged),
        "fAcc": percent(all(values) for values in _grouped(judged, figure_key)),
        "qAcc": percent(all(values) for values in _grouped(judged, question_key)),
    }


def figure_key(row: Row) -> str:
    """What the questions about one figure share."""
    return f"{_topic(row)}_{column(row, 'set_id')}_{column(row, 'figure_id')}"


def question_key(row: Row) -> str:
    """What one question shares over the figures of its set."""
    return f"{_topic(row)}_{column(row, 'set_id')}_{column(row, 'question_id')}"


def set_key(row: Row) -> str:
    """What all questions about the figures of one set share."""
    return f"{_topic(row)}_{column(row, 'set_id')}"


def _topic(row: Row) -> str:
    """The category is part of it: both categories have a subcategory ocr."""
    return f"{column(row, 'category')}_{column(row, 'subcategory')}"


def _gold(row: Row) -> str:
    gold = str(column(row, "gt_answer"))
    if gold not in _ANSWERS:
        raise ScoringError(
            f"The gt_answer of a HallusionBench row is {gold!r}; it must be 0 (no) or 1 (yes)."
        )
    return gold


def _grouped(judged: Iterable[Judged], key: Callable[[Row], str]) -> list[list[bool]]:
    groups: dict[str, list[bool]] = {}
    for row, right in judged:
        groups.setdefault(key(row), []).append(right)
    return list(groups.values())


def _by_group(judged: Sequence[Judged], key: Callable[[Row], str]) -> dict[str, dict[str, float | None]]:
    names = sorted({key(row) for row, _ in judged})
    return {name: accuracies([each for each in judged if key(each[0]) == name]) for name in names}


def _substring_shares(rows: Sequence[Row], predictions: Sequence[str]) -> dict[str, float | None]:
    judged = [
        (row, ("yes" in text.lower()) == (_gold(row) == "1"))
        for row, text in zip(rows, predictions, strict=True)
        if has_image(row)
    ]
    return {name: None if found is None else found / 100 for name, found in accuracies(judged).items()}


def _is_right_by_judge(row: Row) -> bool:
    """Unclear counts as right where there is no picture: figure 0 of a set whose picture is optional."""
    verdict = str(row["judge_verdict"])
    if verdict not in ("0", "1", "2"):
        raise ScoringError(f"judge_verdict is {verdict!r}; it must be 0 incorrect, 1 correct or 2 unclear.")
    return verdict == "1" or (verdict == "2" and _lacks_optional_picture(row))


def _lacks_optional_picture(row: Row) -> bool:
    return column(row, "category") == "VS" and str(column(row, "figure_id")) == "0"


def _official(judged: Sequence[Judged]) -> dict[str, Any]:
    """The authors' accuracies and what they say about figures: inconsistent means some right, some wrong."""
    figures = _grouped([each for each in judged if not _lacks_optional_picture(each[0])], figure_key)
    pairs = _grouped(judged, question_key)
    num_right, num_wrong = sum(map(all, figures)), sum(not any(values) for values in figures)
    return {
        "n_rows": len(judged),
        "aAcc": _rounded(right for _, right in judged),
        "fAcc": _rounded(map(all, figures)),
        "qAcc": _rounded(map(all, pairs)),
        "fig_total": len(figures),
        "pair_total": len(pairs),
        "fig_inconsistent": len(figures) - num_right - num_wrong,
        "fig_wrong": num_wrong,
    }


def _easy_and_hard(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Hard questions are about a figure changed so that the usual answer is wrong, easy ones are the rest."""
    easy = [each for each in judged if not _is_about_changed_figure(each[0])]
    hard = [each for each in judged if _is_about_changed_figure(each[0])]
    return {
        "easy_aAcc": _rounded(map(all, _grouped(easy, question_key))),
        "hard_aAcc": _rounded(map(all, _grouped(hard, question_key))),
    }


def _is_about_changed_figure(row: Row) -> bool:
    return str(column(row, "visual_input")) == "2"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rounded(values: Iterable[bool]) -> float | None:
    found = percent(values)
    return None if found is None else round(found, _DECIMALS)


SCORER = Scorer(
    name="hallusionbench",
    version="1",
    primary="vlmevalkit_exact_image_rows",
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="score",
    line_fields=("judge_verdict",),
)

_VERDICTS = {"incorrect": "0", "correct": "1", "unclear": "2"}
_TEMPLATE = f"""\
You are a teacher who marks an answer. Read the question, the reference answer and the answer, and say \
whether the answer agrees with the reference. {GUARD}
Reply with one word and nothing else: correct when the answer does not conflict with the reference, \
incorrect when it does, unclear when the answer does not settle the question.

Question: {{question}}
Answer: {{answer}}
Verdict:"""


def _read_verdict(row: Row, reply: str) -> str | None:
    word = read_word(tuple(_VERDICTS), reply)
    return None if word is None else _VERDICTS[word]


def _score_with_judge(row: Row, prediction: str, verdict: str | None) -> Score:
    # Nobody asks about an empty text: it is as unclear as can be.
    judged = {"judge_verdict": verdict or _VERDICTS["unclear"], **row}
    right = _is_right_by_judge(judged)
    return {**score(row, prediction), "judge_verdict": str(judged["judge_verdict"]), "correct": right}


def _aggregate_with_judge(
    rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]
) -> dict[str, Any]:
    judged = [
        {**row, "judge_verdict": found["judge_verdict"]} for row, found in zip(rows, scores, strict=True)
    ]
    words_first = [
        (row, row["judge_verdict"] == "1" if found["parsed"] == "Unknown" else found["score"])
        for row, found in zip(judged, scores, strict=True)
        if has_image(row)
    ]
    overall = accuracies(words_first)
    return {
        **{name: found for name, found in aggregate(judged, predictions, scores).items() if "judge" in name},
        "vlmevalkit_judge_image_rows": {"Overall": overall, "average_of_three": _mean(overall.values())},
    }


JUDGING = Judging(
    version="verdict/1",
    template=_TEMPLATE,
    reminder="Reply with one word and nothing else: correct, incorrect or unclear.",
    question=lambda row: f"{column(row, 'question')}\nReference answer: {column(row, 'gt_answer_details')}",
    gold=_gold,
    needs_llm=lambda row, prediction: bool(prediction.strip()) and yes_or_no(prediction) == "Unknown",
    asks=lambda row, prediction: bool(prediction.strip()) and "judge_verdict" not in row,
    read=_read_verdict,
    score=_score_with_judge,
    aggregate=_aggregate_with_judge,
)


def row_id(row: Row) -> str:
    """The index that VLMEvalKit gives a row: it occurs once."""
    parts = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    return "_".join(str(row[name]) for name in parts)


PUBLISHED = PublishedSet(
    name="hallusionbench",
    source="lmms-lab/HallusionBench",
    licence="BSD-3-Clause",
    splits={"image": 951, "non_image": 178},
    columns={
        "category": "string",
        "subcategory": "string",
        "visual_input": "string",
        "set_id": "string",
        "figure_id": "string",
        "sample_note": "string",
        "question_id": "string",
        "question": "string",
        "gt_answer_details": "string",
        "gt_answer": "string",
        "filename": "string",
        "image": "image",
    },
    pictures=("image",),
    id_of=lambda row, place: row_id(row),
    kind_of=_topic,
    answers=lambda row: (_ANSWERS[_gold(row)],),
    # Both harnesses ask the bare question.
    direct=lambda row: str(row["question"]),
    look_again=lambda row: str(row["question"]),
)
