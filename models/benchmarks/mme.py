"""MME (lmms-lab/MME, split test): yes-or-no questions in pairs about one picture, 14 categories.

The score follows EvolvingLMMs-Lab/lmms-eval @75571cfe, lmms_eval/tasks/mme/utils.py: the answer is looked for
in the first four characters only, so "Not at all" is no, "Another" is no and "I think yes" is neither. A
category is worth accuracy + accuracy of whole pairs, each in percent; MME is the sum over the categories:
perception (at most 2000) and cognition (at most 800).

Beside it, over the same predictions: the authors' own tool (deepcs233/Visual-CoT @83212ae4,
playground/data/eval/MME/calculation.py) and VLMEvalKit @e8e78f05 without a judge
(vlmeval/dataset/utils/yorn.py, ``MME_rating``). All three give the same points for the same right answers.
With a judge (``JUDGING``) VLMEvalKit's whole rule is followed: words first, a model where they do not tell.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from models.benchmarks.judging import of_yes_or_no
from models.benchmarks.published import ANSWER_WITH_A_WORD, PublishedSet
from models.benchmarks.scorer import Row, Score, Scorer, column, text_column
from models.benchmarks.yes_or_no import yes_or_no
from models.errors import ScoringError

Parsed = Literal["yes", "no", "other"]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_PREFIX_CHARACTERS = 4


def score(row: Row, prediction: str) -> Score:
    """``parsed`` (yes, no or other) and ``score`` (1.0 when it is the answer, else 0.0)."""
    parsed = parse(prediction)
    return {"parsed": parsed, "score": float(parsed == _gold(row))}


def parse(prediction: str) -> Parsed:
    """The answer by the rule of lmms-eval: every full stop goes, one letter will do, else see the prefix."""
    text = prediction.lower().strip().replace(".", "")
    match text:
        case "y":
            return "yes"
        case "n":
            return "no"
        case _:
            return _of_prefix(text)


def parse_as_official(prediction: str) -> Parsed:
    """The answer by the authors' tool: nothing is stripped, and a letter alone will not do.

    It reads its input from a file of tabs and lines, so both are spaces in a prediction.
    """
    return _of_prefix(prediction.lower().translate(str.maketrans("\t\n\r", "   ")))


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """Points in total and per category, by the three rules.

    Raises ScoringError unless every picture of a category has exactly two questions: a pair with a missing
    half would be worth something else to each of the three.
    """
    golds = [_gold(row) for row in rows]
    official = [float(parse_as_official(text) == gold) for text, gold in zip(predictions, golds, strict=True)]
    words = [float(yes_or_no(text).lower() == gold) for text, gold in zip(predictions, golds, strict=True)]
    lmms_eval = category_points(rows, [found["score"] for found in scores])
    eval_tool = category_points(rows, official)
    return {
        "lmms_eval": _totals(lmms_eval, perception="mme_perception_score", cognition="mme_cognition_score"),
        "mme_eval_tool": _totals(eval_tool, perception="perception", cognition="cognition"),
        "vlmevalkit_exact": _by_vlmevalkit(rows, words),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many texts said neither yes nor no."""
    return {"other": sum(found["parsed"] == "other" for found in scores)}


def category_points(rows: Sequence[Row], right: Sequence[float]) -> dict[str, float]:
    """Points (at most 200) of each category that occurs, in the order of the benchmark.

    ``right`` holds 1.0 or 0.0 per row. Raises ScoringError for an unknown category or an incomplete pair.
    """
    pairs: dict[str, dict[Any, list[float]]] = {name: {} for name in (*PERCEPTION, *COGNITION)}
    for row, value in zip(rows, right, strict=True):
        category = column(row, "category")
        if category not in pairs:
            raise ScoringError(f"MME has no category {category!r}, only {', '.join(pairs)}.")
        pairs[category].setdefault(column(row, "question_id"), []).append(value)
    return {name: _points(name, found) for name, found in pairs.items() if found}


def _points(category: str, pairs: dict[Any, list[float]]) -> float:
    for question_id, values in pairs.items():
        if len(values) != 2:
            raise ScoringError(
                f"MME asks two questions about each picture, {question_id!r} of {category} has {len(values)} "
                "predictions. Give both questions of every picture, each once."
            )
    accuracy = fmean(fmean(values) for values in pairs.values())
    pair_accuracy = fmean(float(all(values)) for values in pairs.values())
    return 100 * accuracy + 100 * pair_accuracy


def _by_vlmevalkit(rows: Sequence[Row], right: Sequence[float]) -> dict[str, Any]:
    return _totals(category_points(rows, right), perception="perception", cognition="reasoning")


def _totals(points: dict[str, float], *, perception: str, cognition: str) -> dict[str, Any]:
    """The totals under the names that their reference gives them."""
    seen = sum(points.get(name, 0.0) for name in PERCEPTION)
    thought = sum(points.get(name, 0.0) for name in COGNITION)
    return {perception: seen, cognition: thought, "sum": seen + thought, "per_category": points}


def _gold(row: Row) -> str:
    gold = text_column(row, "answer").lower().strip().replace(".", "")
    if gold not in ("yes", "no"):
        raise ScoringError(f"The answer of an MME row is {row['answer']!r}; it must be Yes or No.")
    return gold


def _of_prefix(text: str) -> Parsed:
    prefix = text[:_PREFIX_CHARACTERS]
    if "yes" in prefix:
        return "yes"
    return "no" if "no" in prefix else "other"


SCORER = Scorer(
    name="mme",
    version="1",
    primary="lmms_eval",
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="score",
)


_ASKS_FOR_YES_OR_NO = " Please answer yes or no."


def _bare_question(row: Row) -> str:
    return text_column(row, "question").strip().replace(_ASKS_FOR_YES_OR_NO, "")


JUDGING = of_yes_or_no(
    question=_bare_question,
    answer=lambda row: _gold(row).capitalize(),
    aggregate=lambda rows, predictions, scores: {
        "vlmevalkit_judge": _by_vlmevalkit(rows, [float(found["correct"]) for found in scores])
    },
)


def direct_prompt(row: Row) -> str:
    """The prompt of lmms-eval: its own request for a short answer in place of the question's."""
    return f"{_bare_question(row)}\n{ANSWER_WITH_A_WORD}"


PUBLISHED = PublishedSet(
    name="mme",
    source="lmms-lab/MME",
    licence="none stated",
    splits={"test": 2374},
    columns={
        "question_id": "string",
        "image": "image",
        "question": "string",
        "answer": "string",
        "category": "string",
    },
    pictures=("image",),
    # Both questions of a pair have the same question_id.
    id_of=lambda row, place: f"{row['question_id']}#{place}",
    kind_of=lambda row: str(row["category"]),
    answers=lambda row: (row["answer"],),
    direct=direct_prompt,
    # The question itself says that yes and no are the answers.
    look_again=lambda row: text_column(row, "question").strip(),
)
