"""MathVista (AI4Math/MathVista, split testmini, 1000 questions): an answer is extracted, brought into the
form of the question's type and compared as text.

The score follows lupantech/MathVista @53d52587: evaluation/extract_answer.py with its quick rule, then
``normalize_extracted_answer`` and ``safe_equal`` of evaluation/calculate_score.py. The authors ask a language
model when the quick rules find nothing. Here a judge is asked only if there is one (``JUDGING``); else the
extraction is empty, as when the authors' model fails, and ``needs_llm_quick`` says so. Published numbers are
made with a model, and which one moves them by several points, so a number from the rules alone is comparable
only with another one of its kind.

Traps that are kept: a multiple-choice answer that names no option counts as the option nearest to it by edit
distance, even when it is empty; a float is rounded to the question's decimals first, an integer is cut off.

Beside it, over the same extractions, for comparison only: lmms-eval @75571cfe (ignores blanks at the ends),
also as it is with the published rows, whose precision is a float, so that no float question can be right;
and VLMEvalKit @e8e78f05 (``post_check`` of vlmeval/dataset/utils/mathvista.py).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rapidfuzz.distance import Levenshtein

from models.answers import bare_word
from models.benchmarks.judging import Judging
from models.benchmarks.mathvista_extraction import LABEL, NO_ANSWER, REMINDER, TEMPLATE
from models.benchmarks.option_matching import infer_option
from models.benchmarks.published import PublishedSet, with_options
from models.benchmarks.scorer import Row, Score, Scorer, column, percent, text_column
from models.errors import ScoringError

# What an accuracy is broken down by, besides the average: columns of the row, then fields of its metadata.
_COLUMNS = ("question_type", "answer_type")
_METADATA = ("language", "source", "category", "task", "context", "grade", "skills")

_LETTER = re.compile(r"\(([a-zA-Z])\)")
_QUOTE_OPENS, _QUOTE_CLOSES = 'The answer is "', '".'
_DECIMALS = 2


def score(row: Row, prediction: str, by_model: str = "") -> Score:
    """What was extracted, what it means for the question, and whether that is the answer.

    ``by_model`` is what a model extracted; it counts only where the quick rules find nothing. The fields:
    ``extraction``; ``needs_llm_quick`` and ``needs_llm_default`` (a model would have to extract, with and
    without the quick rule); ``normalized`` (None when it has not the form of the type); ``true_false``.
    A row whose ``kind`` is "extraction" comes with the extracted answer as prediction: both needs are None.
    """
    kind = row.get("kind", "response")
    if kind not in ("response", "extraction"):
        raise ScoringError(f"The kind of a MathVista line is {kind!r}; it must be response or extraction.")
    needs: tuple[bool | None, bool | None] = (None, None)
    extraction = prediction
    if kind == "response":
        found = direct_answer(row, prediction)
        quoted = quoted_answer(prediction) if found is None else found
        needs = (quoted is None, found is None)
        extraction = by_model if quoted is None else quoted
    meant = normalised(row, extraction)
    return {
        "extraction": extraction,
        "needs_llm_quick": needs[0],
        "needs_llm_default": needs[1],
        "normalized": meant,
        "true_false": meant == column(row, "answer"),
    }


def direct_answer(row: Row, prediction: str) -> str | None:
    """The text itself when it is empty, an option or a number of the question's type; None otherwise."""
    if prediction == "" or (_is_multiple_choice(row) and prediction in _choices(row)):
        return prediction
    answer_type = column(row, "answer_type")
    try:
        if answer_type == "integer":
            return str(int(prediction))
        if answer_type == "float":
            return str(float(prediction))
    except ValueError:
        return None
    return None


def quoted_answer(prediction: str) -> str | None:
    """What stands in 'The answer is "...".', up to the last such end of the first line with both."""
    for line in prediction.split("\n"):
        _, opens, rest = line.partition(_QUOTE_OPENS)
        answer, closes, _ = rest.rpartition(_QUOTE_CLOSES)
        if opens and closes:
            return answer
    return None


def normalised(row: Row, extraction: str) -> str | None:
    """An extraction in the form of the question's type; None when it cannot be brought into it."""
    if _is_multiple_choice(row):
        return nearest_option(_choices(row), extraction)
    try:
        match column(row, "answer_type"):
            case "integer":
                return str(int(float(extraction)))
            case "float":
                # The published column is a float, for which round() has no use.
                return str(round(float(extraction), int(column(row, "precision"))))
    except (ValueError, OverflowError, TypeError):
        return None
    return extraction


def nearest_option(choices: Sequence[str], extraction: str) -> str:
    """The option whose letter is named, "(b) ..." or "B", or else the one with the fewest edits."""
    text = extraction.strip()
    if named := _LETTER.search(text):
        text = named[1].upper()
    if len(text) == 1 and text in ascii_uppercase[: len(choices)]:
        return choices[ascii_uppercase.index(text)]
    return min(choices, key=lambda choice: Levenshtein.distance(text, choice))


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """The metrics that the module's docstring names; accuracies between 0 and 1, the others' in percent."""
    right = [found["true_false"] for found in scores]
    pairs = list(zip(rows, scores, strict=True))
    lmms = [is_right_by_lmms(row, found["normalized"]) for row, found in pairs]
    lmms_published = [
        is_right_by_lmms(row, None if _is_float(row) else found["normalized"]) for row, found in pairs
    ]
    return {
        "official": accuracies(rows, right),
        "lmms_eval_accuracy_precision_int": _rounded_percent(lmms),
        "lmms_eval_accuracy_precision_float64": _rounded_percent(lmms_published),
        "vlmevalkit_post_check_on_same_extractions": percent(
            is_right_by_vlmevalkit(row, found["extraction"]) for row, found in pairs
        ),
        "n_needs_llm_quick": _num(found["needs_llm_quick"] for found in scores),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many texts need a model to extract from, and how many choices were made for an empty extraction."""
    empty = [row for row, found in zip(rows, scores, strict=True) if not found["extraction"].strip()]
    return {
        "needs_llm": _num(found["needs_llm_quick"] for found in scores),
        "needs_llm_without_quick_rule": _num(found["needs_llm_default"] for found in scores),
        "option_nearest_to_nothing": sum(map(_is_multiple_choice, empty)),
    }


def accuracies(rows: Sequence[Row], right: Sequence[bool]) -> dict[str, Any]:
    """Average and breakdowns, each value's accuracy with what it is made of; the best value comes first.

    A row counts once for each of its skills.
    """
    broken_down: dict[str, dict[str, list[bool]]] = {name: {} for name in (*_COLUMNS, *_METADATA)}
    for row, correct in zip(rows, right, strict=True):
        for name, groups in broken_down.items():
            for value in _values(row, name):
                groups.setdefault(value, []).append(correct)
    found: dict[str, Any] = {"average": _accuracy(right)}
    for name, groups in broken_down.items():
        values = {value: _accuracy(members) for value, members in groups.items()}
        found[name] = dict(sorted(values.items(), key=lambda each: each[1]["accuracy"], reverse=True))
    return found


def is_right_by_lmms(row: Row, meant: str | None) -> bool:
    """lmms-eval compares as texts, without the blanks at the ends."""
    return str(meant).strip() == str(column(row, "answer")).strip()


def is_right_by_vlmevalkit(row: Row, extraction: str) -> bool:
    """VLMEvalKit wants the letter of a named option or an equal number; a list is never right."""
    answer = column(row, "answer")
    if _is_multiple_choice(row):
        choices = dict(zip(ascii_uppercase, _choices(row), strict=False))
        letter = infer_option(extraction, choices)
        return letter is not None and choices.get(letter) == answer
    number = {"integer": int, "float": float}.get(column(row, "answer_type"))
    try:
        return number is not None and bool(number(extraction) == number(answer))
    except ValueError:
        return False


def _values(row: Row, name: str) -> list[str]:
    if name in _COLUMNS:
        return [column(row, name)]
    metadata: Mapping[str, Any] = column(row, "metadata")
    value = column(metadata, name)
    return list(dict.fromkeys(value)) if name == "skills" else [value]


def _accuracy(right: Sequence[bool]) -> dict[str, Any]:
    return {"accuracy": sum(right) / len(right), "correct": sum(right), "total": len(right)}


def _rounded_percent(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right) * 100, _DECIMALS)


def _num(flags: Iterable[bool | None]) -> int:
    return sum(flag is True for flag in flags)


def _is_multiple_choice(row: Row) -> bool:
    return bool(column(row, "question_type") == "multi_choice")


def _is_float(row: Row) -> bool:
    return not _is_multiple_choice(row) and bool(column(row, "answer_type") == "float")


def _choices(row: Row) -> Sequence[str]:
    choices = column(row, "choices")
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        raise ScoringError(f"Column 'choices' holds {choices!r}; a multiple-choice row has a list of texts.")
    if not choices:
        raise ScoringError("Column 'choices' is empty; a multiple-choice row has at least one option.")
    return choices


SCORER = Scorer(
    name="mathvista",
    version="1",
    primary="official lupantech/MathVista evaluation/{extract_answer,calculate_score}.py",
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="true_false",
    line_fields=("kind",),
)


def read_extraction(row: Row, reply: str) -> str | None:
    """The answer that a reply consists of, "" when it says that there is none; None when it is no answer.

    An option must be named by its letter or in full, a number must be one, a list must stand in brackets:
    the nearest option is no reading of a judge that talks.
    """
    said = bare_word(reply.strip().removeprefix(LABEL))
    if not said or "\n" in said:
        return None
    if _is_multiple_choice(row):
        return _chosen(_choices(row), said)
    if said.casefold() == NO_ANSWER:
        return ""
    if column(row, "answer_type") == "list":
        return said if said.startswith("[") and said.endswith("]") else None
    return said if normalised(row, said) is not None else None


def _chosen(choices: Sequence[str], said: str) -> str | None:
    for letter, choice in zip(ascii_uppercase, choices):
        forms = (letter, f"({letter})", choice, f"({letter}) {choice}", f"{letter}. {choice}")
        if said.casefold() in map(str.casefold, forms):
            return letter
    return "" if said.casefold() == NO_ANSWER else None


def _needs_llm(row: Row, prediction: str) -> bool:
    return score(row, prediction)["needs_llm_quick"] is True


def _score_with_judge(row: Row, prediction: str, verdict: str | None) -> Score:
    found = score(row, prediction, by_model=verdict or "")
    return {**found, "correct": found["true_false"]}


JUDGING = Judging(
    version="extraction/1",
    template=TEMPLATE,
    reminder=REMINDER,
    question=lambda row: text_column(row, "query"),
    gold=lambda row: text_column(row, "answer"),
    needs_llm=_needs_llm,
    asks=_needs_llm,
    read=read_extraction,
    score=_score_with_judge,
    aggregate=aggregate,
)


def question_with_choices(row: Row) -> str:
    """The question with its unit and its choices, without the hint that asks for a form."""
    unit = f" (Unit: {row['unit']})" if row["unit"] else ""
    question = f"{row['question']}{unit}"
    return with_options(question, row["choices"], form="({letter}) {text}") if row["choices"] else question


PUBLISHED = PublishedSet(
    name="mathvista",
    source="AI4Math/MathVista",
    licence="CC BY-SA 4.0",
    # The answers of split test are kept by the authors.
    splits={"testmini": 1000, "test": 5141},
    columns={
        "pid": "string",
        "question": "string",
        "image": "string",
        "decoded_image": "image",
        "choices": "list<string>",
        "unit": "string",
        "precision": "float64",
        "answer": "string",
        "question_type": "string",
        "answer_type": "string",
        "metadata": (
            "struct<category: string, context: string, grade: string, img_height: int64, img_width: int64, "
            "language: string, skills: list<string>, source: string, split: string, task: string>"
        ),
        "query": "string",
    },
    pictures=("decoded_image",),
    id_of=lambda row, place: str(row["pid"]),
    kind_of=lambda row: str(row["metadata"]["task"]),
    answers=lambda row: (row["answer"],) if row["answer"] else (),
    # The authors' prompt is part of the row.
    direct=lambda row: str(row["query"]),
    look_again=question_with_choices,
)
