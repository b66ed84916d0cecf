"""MathVision (MathLLMs/MathVision, split test, 3040 questions; testmini, 304): an option or a value.

The score follows mathllm/MATH-V @a1f5cc3a, evaluation/evaluate.py: the answer is read from the text
(:mod:`models.benchmarks.mathvision_reading`) and is right when it equals the gold letter or the text of the
gold option: as texts, element by element, or as numbers at two decimals. The reference evaluates the model's
text as code for that; :mod:`models.benchmarks.latex_value` finds the same numbers without doing so and says
where it gives up.

Reported are right answers over all, by level, by subject and by both, in percent at two decimals.

Beside it, over the same predictions, for comparison only: lmms-eval @75571cfe, which does the same, and its
wheel 0.7.3, which has lost the functions of the math module, so that no root and no π has a value.
VLMEvalKit's rule is not repeated: it lets Python evaluate the model's text.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from models.benchmarks.latex_value import latex_value
from models.benchmarks.mathvision_reading import model_answer
from models.benchmarks.published import PublishedSet, with_options
from models.benchmarks.scorer import Row, Score, Scorer, column
from models.errors import ScoringError

_DECIMALS = 2
_BRACKETS = {"(": ")", "[": "]"}
# A longer list equals no gold answer, and each of its elements would be worked out.
_MAX_LIST_CHARACTERS = 2000
# Elements that stay as they are.
_UNKNOWNS = ("a", "-a")


def score(row: Row, prediction: str) -> Score:
    """``model_answer``: what was read from the text, in lower case; ``correct``: whether it is right."""
    answer = model_answer(prediction)
    return {"model_answer": answer, "correct": is_right(row, answer)}


def is_right(row: Row, answer: str, *, with_functions: bool = True) -> bool:
    """True when an answer equals the gold letter or value, or the text of the gold option."""
    gold = str(column(row, "answer"))
    return any(
        are_equal(wanted, answer, with_functions=with_functions) for wanted in (gold, _gold_option(row, gold))
    )


def are_equal(gold: str, answer: str, *, with_functions: bool = True) -> bool:
    """True for equal texts, equal lists of numbers or equal numbers. Nothing equals an empty text."""
    gold, answer = gold.lower(), answer.lower()
    if not gold.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if gold.strip() == answer.strip():
        return True
    gold, answer = (_with_values(text, with_functions=with_functions) for text in (gold, answer))
    if gold == answer:
        return True
    wanted = _rounded_value(gold, with_functions=with_functions)
    return wanted is not None and wanted == _rounded_value(answer, with_functions=with_functions)


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """The metrics that the module's docstring names."""
    right = [bool(found["correct"]) for found in scores]
    without_functions = [
        is_right(row, found["model_answer"], with_functions=False)
        for row, found in zip(rows, scores, strict=True)
    ]
    return {
        "official": shares(rows, right),
        "accuracy": _percent(right),
        "lmms_eval_head": _percent(right),
        "lmms_eval_0.7.3_wheel": _percent(without_functions),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many answers to questions without options have no value, and to others are no letter."""
    found = [each["model_answer"] for each in scores]
    pairs = [(bool(column(row, "options")), answer) for row, answer in zip(rows, found, strict=True)]
    return {
        "empty": sum(not answer for _, answer in pairs),
        "options_without_letter": sum(
            has_options and answer not in tuple(ascii_uppercase.lower()) for has_options, answer in pairs
        ),
        "values_without_number": sum(
            not has_options and latex_value(answer) is None for has_options, answer in pairs
        ),
    }


def shares(rows: Sequence[Row], right: Sequence[bool]) -> dict[str, str]:
    """``right/all=percent%`` under the reference's keys, sorted; keys of levels begin with a hyphen."""
    answers: dict[str, list[bool]] = {}
    for row, correct in zip(rows, right, strict=True):
        level, subject = f"level{column(row, 'level')}", column(row, "subject")
        for key in ("-all", f"-{level}", subject, f"{subject}_{level}", f"-{level}_{subject}"):
            answers.setdefault(key, []).append(correct)
    return {
        key: f"{sum(values)}/{len(values)}={_percent(values)}%" for key, values in sorted(answers.items())
    }


def _gold_option(row: Row, gold: str) -> str:
    """The text of the option that the gold letter names, empty when the question has no options."""
    options = column(row, "options")
    if not options:
        return ""
    by_letter: Mapping[str, str] = dict(zip(ascii_uppercase, options, strict=False))
    if gold not in by_letter:
        raise ScoringError(
            f"The answer of a MathVision row is {gold!r}; it must name one of {len(options)} options."
        )
    return by_letter[gold]


def _with_values(text: str, *, with_functions: bool) -> str:
    """A list of several elements with their values at two decimals; every other text as it is.

    2 and 2.0 stay different: 4/2 is not the 2 of a list.
    """
    elements = text[1:-1].split(",")
    if len(text) > _MAX_LIST_CHARACTERS or len(elements) < 2 or text[-1] != _BRACKETS.get(text[0]):
        return text
    values = []
    for element in elements:
        if "infty" in element or element in _UNKNOWNS:
            values.append(element)
            continue
        value = _rounded_value(element, with_functions=with_functions)
        if value is None:
            return text
        values.append(str(value))
    return f"{text[0]}{','.join(values)}{text[-1]}"


def _rounded_value(latex: str, *, with_functions: bool) -> float | None:
    value = latex_value(latex, with_functions=with_functions)
    return None if value is None else round(value, _DECIMALS)


def _percent(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right) * 100, _DECIMALS)


SCORER = Scorer(
    name="mathvision",
    version="2",
    primary=(
        "official mathllm/MATH-V evaluation/evaluate.py + utils.py "
        "(latex2sympy2 1.9.1, antlr4 4.7.2, sympy 1.14.0)"
    ),
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="correct",
)


def question_with_options(row: Row) -> str:
    """The question and its five options, unless they are only the labels A to E inside the picture."""
    options = row["options"]
    if not options or "".join(options) == "ABCDE":
        return str(row["question"])
    return with_options(row["question"], options, form="({letter}) {text}")


def direct_prompt(row: Row) -> str:
    """The authors' prompt (mathllm/MATH-V, models/Qwen-VL.py)."""
    return (
        'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple '
        'choice question, only one letter is allowed in the "\\boxed{}".\n'
        f"{question_with_options(row)}\n"
    )


PUBLISHED = PublishedSet(
    name="mathvision",
    source="MathLLMs/MathVision",
    licence="MIT",
    splits={"test": 3040, "testmini": 304},
    columns={
        "id": "string",
        "question": "string",
        "options": "list<string>",
        "image": "string",
        "decoded_image": "image",
        "answer": "string",
        "solution": "string",
        "level": "int64",
        "subject": "string",
    },
    # One picture, into which the authors merged those of questions with several.
    pictures=("decoded_image",),
    id_of=lambda row, place: str(row["id"]),
    kind_of=lambda row: str(row["subject"]),
    answers=lambda row: (row["answer"],),
    direct=direct_prompt,
    look_again=question_with_options,
)
