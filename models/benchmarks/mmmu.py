"""MMMU (MMMU/MMMU, split validation, 900 questions of 30 subjects): multiple choice and short open answers.

The score follows MMMU-Benchmark/MMMU @bb0b95a9 (mmmu/utils/eval_utils.py, data_utils.py, main_eval_only.py)
but for one thing: where the authors cannot tell which option a text names they draw one at random. Here that
is never done; the score says ``random_fallback``, and the answer counts as wrong.

A gold answer that is a list ("['Tampa', 'Florida']" in the published rows) is read as one. Accuracy is given
for each subject and, weighted by the number of rows, for each domain and overall.

Beside it, over the same predictions, for comparison only:

* ``official_seed42_file_order``: the authors' number when their script is run on the rows in this order:
  Python's generator seeded with 42 once, one draw for each text that names no option. It moves with the
  order of the rows, so it is no measure of a model.
* the multiple-choice parser of lmms-eval @75571cfe, and its wheel 0.7.3 on open questions, which keeps a
  list of gold answers as one text.
* VLMEvalKit @e8e78f05 without a judge (:mod:`models.benchmarks.option_matching`); it makes an open question
  one with two options, the gold answer and "Other Answers". With a judge (``JUDGING``) its whole rule is
  followed, as for most published numbers: the matcher, and a model where that cannot tell.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from random import Random
from string import ascii_uppercase
from typing import Any

from models.benchmarks.judging import of_options
from models.benchmarks.mmmu_parsing import LMMS_LOOKS, normalise, parse_open, parse_option
from models.benchmarks.option_matching import infer_option
from models.benchmarks.published import ANSWER_WITH_A_LETTER, ANSWER_WITH_A_WORD, PublishedSet, with_options
from models.benchmarks.scorer import Row, Score, Scorer, column, text_column
from models.errors import ScoringError

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_SUBJECTS = frozenset(subject for subjects in DOMAINS.values() for subject in subjects)
_SEED = 42


def score(row: Row, prediction: str) -> Score:
    """What the text was read as, and whether that is right.

    Multiple choice: ``parsed`` (a letter), ``random_fallback``, ``correct``; without a letter the fallback is
    true and the other two are None. Open: ``parsed`` (possible answers), ``gold_used``, ``correct``, and
    ``correct_if_gold_kept_as_string`` (what a harness says that does not read lists).
    """
    gold = text_column(row, "answer")
    if is_multiple_choice(row):
        letter = parse_option(prediction, options_of(row))
        correct = None if letter is None else letter == gold
        return {"parsed": letter, "random_fallback": letter is None, "correct": correct}
    golds = gold_answers(gold)
    parsed = parse_open(prediction)
    return {
        "parsed": parsed,
        "gold_used": gold if golds is None else golds,
        "correct": is_open_right(parsed, [gold] if golds is None else golds),
        "correct_if_gold_kept_as_string": is_open_right(parsed, [gold]),
    }


def is_multiple_choice(row: Row) -> bool:
    """True when the question has options; every other type of question is open."""
    return bool(column(row, "question_type") == "multiple-choice")


def options_of(row: Row) -> dict[str, str]:
    """The options under their letters. The column holds a list or, as published, the text of one."""
    options = column(row, "options")
    if isinstance(options, str):
        options = _list_of_texts(options)
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise ScoringError(
            f"Column 'options' holds {row['options']!r}; MMMU has a list of texts there, in Python notation."
        )
    return dict(zip(ascii_uppercase, options, strict=False))


def gold_answers(gold: str) -> list[str] | None:
    """The gold answers when the column's text is a list of texts, None when it is one answer."""
    return _list_of_texts(gold) if gold.startswith("[") else None


def is_open_right(parsed: Sequence[str | float], golds: Sequence[str]) -> bool:
    """True when a gold text is in a possible answer, or a gold number equals one."""
    wanted = [each for gold in golds for each in normalise(gold)]
    texts = [each for each in wanted if isinstance(each, str)]
    return any(
        any(text in found for text in texts) if isinstance(found, str) else found in wanted
        for found in parsed
    )


def is_right_by_vlmevalkit(row: Row, prediction: str) -> bool:
    """True when VLMEvalKit without a judge reads the right option."""
    return infer_option(prediction, _vlmevalkit_options(row)) == _vlmevalkit_letter(row)


def _vlmevalkit_options(row: Row) -> dict[str, str]:
    if is_multiple_choice(row):
        return options_of(row)
    return {"A": text_column(row, "answer"), "B": "Other Answers"}


def _vlmevalkit_letter(row: Row) -> str:
    """An open question whose answer is a capital letter keeps it as its option: nothing can be right then."""
    gold = text_column(row, "answer")
    return gold if gold in set(ascii_uppercase) else "A"


def subject_of(row: Row) -> str:
    """The subject in the row's id, such as "Art_Theory" in "validation_Art_Theory_3"."""
    name = text_column(row, "id")
    subject = "_".join(name.split("_")[1:-1])
    if subject not in _SUBJECTS:
        raise ScoringError(
            f"The id {name!r} names no subject of MMMU; it must read like validation_Art_Theory_3."
        )
    return subject


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """The metrics that the module's docstring names, between 0 and 1; None where there is no row."""
    choices = [index for index, row in enumerate(rows) if is_multiple_choice(row)]
    by_lmms = [parse_option(predictions[index], options_of(rows[index]), LMMS_LOOKS) for index in choices]
    open_scores = [found for row, found in zip(rows, scores, strict=True) if not is_multiple_choice(row)]
    return {
        "official_fallback_counted_wrong": accuracies(rows, [bool(found["correct"]) for found in scores]),
        "official_seed42_file_order": accuracies(rows, _with_drawn_options(rows, scores)),
        "n_multiple_choice": len(choices),
        "n_open": len(open_scores),
        "n_random_fallback_official": _num_fallbacks(scores),
        "n_random_fallback_lmms_eval": by_lmms.count(None),
        "lmms_eval_mc_acc_fallback_wrong": _share(
            [letter == rows[index]["answer"] for index, letter in zip(choices, by_lmms, strict=True)]
        ),
        "open_acc_official": _share([found["correct"] for found in open_scores]),
        "open_acc_lmms_0.7.3": _share([found["correct_if_gold_kept_as_string"] for found in open_scores]),
        "vlmevalkit_exact_overall": _share(
            [is_right_by_vlmevalkit(row, text) for row, text in zip(rows, predictions, strict=True)]
        ),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many texts named no option, so that the authors would have drawn one."""
    return {"random_fallback": _num_fallbacks(scores)}


def accuracies(rows: Sequence[Row], right: Sequence[bool]) -> dict[str, Any]:
    """Shares of right answers overall, by domain (all six) and by subject (those that have rows)."""
    answers: dict[str, list[bool]] = {}
    for row, correct in zip(rows, right, strict=True):
        answers.setdefault(subject_of(row), []).append(correct)
    subjects = {
        name: {"acc": sum(values) / len(values), "num_example": len(values)}
        for name, values in answers.items()
    }
    domains = {
        domain: _weighted([subjects[name] for name in names if name in subjects])
        for domain, names in DOMAINS.items()
    }
    return {"Overall": _weighted(list(subjects.values())), "domains": domains, "subjects": subjects}


def _weighted(subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    num = sum(subject["num_example"] for subject in subjects)
    num_right = sum(subject["acc"] * subject["num_example"] for subject in subjects)
    return {"num": num, "acc": num_right / num if num else 0}


def _with_drawn_options(rows: Sequence[Row], scores: Sequence[Score]) -> list[bool]:
    generator = Random(_SEED)
    right = []
    for row, found in zip(rows, scores, strict=True):
        if found.get("random_fallback"):
            letters = list(options_of(row))
            right.append(bool(letters) and generator.choice(letters) == row["answer"])
        else:
            right.append(bool(found["correct"]))
    return right


def _num_fallbacks(scores: Sequence[Score]) -> int:
    return sum(found.get("random_fallback", False) for found in scores)


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _list_of_texts(text: str) -> list[str] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


SCORER = Scorer(
    name="mmmu",
    version="1",
    primary=(
        "official MMMU mmmu/utils/eval_utils.py; "
        "metrics.official_fallback_counted_wrong is the deterministic one"
    ),
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="correct",
)


def question_with_options(row: Row) -> str:
    """The question and its options. Pictures are named where they belong, as in "<image 1>"."""
    question = text_column(row, "question")
    return with_options(question, list(options_of(row).values())) if is_multiple_choice(row) else question


JUDGING = of_options(
    question=lambda row: with_options(text_column(row, "question"), list(_vlmevalkit_options(row).values())),
    choices=_vlmevalkit_options,
    answer=_vlmevalkit_letter,
    aggregate=lambda rows, predictions, scores: {
        "vlmevalkit_judge": accuracies(rows, [bool(found["correct"]) for found in scores])
    },
)


def direct_prompt(row: Row) -> str:
    """The prompt of lmms-eval."""
    request = ANSWER_WITH_A_LETTER if is_multiple_choice(row) else ANSWER_WITH_A_WORD
    return f"{question_with_options(row)}\n\n{request}"


def published_answers(row: Row) -> tuple[str, ...]:
    """The gold answers, empty where the authors keep them."""
    gold = text_column(row, "answer")
    return () if gold == _HIDDEN else tuple(gold_answers(gold) or (gold,))


_HIDDEN = "?"
_PICTURES = tuple(f"image_{number}" for number in range(1, 8))

PUBLISHED = PublishedSet(
    name="mmmu",
    source="lmms-lab/MMMU, or all subjects of MMMU/MMMU",
    licence="apache-2.0",
    splits={"validation": 900, "dev": 150, "test": 10500},
    columns={
        "id": "string",
        "question": "string",
        "options": "string",
        "explanation": "string",
        **dict.fromkeys(_PICTURES, "image"),
        "img_type": "string",
        "answer": "string",
        "topic_difficulty": "string",
        "question_type": "string",
        "subfield": "string",
    },
    pictures=_PICTURES,
    id_of=lambda row, place: str(row["id"]),
    kind_of=subject_of,
    answers=published_answers,
    direct=direct_prompt,
    look_again=question_with_options,
    picture_mark=re.compile(r"<image (\d+)>"),
)
