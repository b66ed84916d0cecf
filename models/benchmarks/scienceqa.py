"""ScienceQA (lmms-lab/ScienceQA, split test): up to five options; 2,017 of 4,241 questions have a picture.

The score follows EvolvingLMMs-Lab/lmms-eval @75571cfe, lmms_eval/tasks/scienceqa/utils.py. It is strict: a
letter alone, or a capital letter with a full stop at the beginning. "The answer is B" and "(B)" are wrong.

Beside it, over the same predictions:

* ``lmms_may2025``: the same file @5a1a31c8 (2025-05-19), current when the paper was written. By a slip it
  accepts a letter alone and nothing else, so it flatters whoever answers in one letter: compare the paper's
  numbers with this one.
* ``llava``: haotian-liu/LLaVA, llava/eval/eval_science_qa.py as in deepcs233/Visual-CoT @83212ae4.
* ``lenient``: the matcher of VLMEvalKit @e8e78f05 without a judge (:mod:`models.benchmarks.option_matching`).
  With a judge (``JUDGING``) its whole rule is followed: the matcher, and a model where that cannot tell.

Where the authors' own script (lupantech/ScienceQA @2cbf8318, models/run_gpt3.py) draws an option at random,
every rule here says wrong; :func:`counts` says how often that was.
"""

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any

from models.benchmarks.judging import of_options
from models.benchmarks.option_matching import infer_option
from models.benchmarks.published import ANSWER_WITH_A_LETTER, PublishedSet, with_options
from models.benchmarks.scorer import Row, Score, Scorer, column, percent
from models.errors import ScoringError

# A rule says whether a text names the option with this letter.
Rule = Callable[[Row, str], bool]

# The full stop of the reference's expression is not escaped: any one character must follow the letter.
_SENTENCE = re.compile("The answer is ([A-Z]).")
_LLAVA_LETTERS = "ABCDE"


def score(row: Row, prediction: str) -> Score:
    """``target`` (the letter of the answer) and ``score`` (1.0 or 0.0)."""
    return {"target": target(row), "score": float(lmms(row, prediction))}


def target(row: Row) -> str:
    """The letter of the answer. Raises ScoringError when the row's index names no option."""
    index = column(row, "answer")
    letters = ascii_uppercase[: len(_choices(row))]
    if not isinstance(index, int) or not 0 <= index < len(letters):
        raise ScoringError(
            f"The answer of a ScienceQA row is {index!r}; it must be the index of one "
            f"of its {len(letters)} options."
        )
    return letters[index]


def lmms(row: Row, prediction: str) -> bool:
    """The letter alone in either case, or the capital letter, a full stop and anything."""
    text, letter = prediction.strip(), target(row)
    return text.lower() == letter.lower() or text.startswith(f"{letter}.")


def lmms_may2025(row: Row, prediction: str) -> bool:
    """The letter alone in either case."""
    return prediction.strip().lower() == target(row).lower()


def llava(row: Row, prediction: str) -> bool:
    """The bare letter, ``X. text``, or exactly one sentence that says so; nothing is stripped."""
    return llava_letter(prediction) == target(row)


def lenient(row: Row, prediction: str) -> bool:
    """The option that is named by its letter or by its text, see :func:`infer_option`."""
    return infer_option(prediction, _choices(row)) == target(row)


def llava_letter(prediction: str) -> str | None:
    """The letter that LLaVA's script reads; it need not be an option of the question."""
    if len(prediction) == 1 and prediction in _LLAVA_LETTERS:
        return prediction
    if prediction[1:3] == ". " and prediction[0] in _LLAVA_LETTERS:
        return prediction[0]
    return sentence_letter(prediction)


def sentence_letter(prediction: str) -> str | None:
    """The letter of the only sentence that says "The answer is X", None when there is none or several."""
    found = _SENTENCE.findall(prediction)
    return found[0] if len(found) == 1 else None


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """Accuracy in percent by every rule, over all rows and over the rows with a picture."""
    pairs = list(zip(rows, predictions, strict=True))
    seen = [pair for pair in pairs if has_image(pair[0])]
    everything, image_rows = _accuracies(pairs), _accuracies(seen)
    num_right = sum(llava(row, text) for row, text in pairs)
    return {
        "all_rows": everything,
        "image_rows": image_rows,
        "llava_stdout": (
            f"Total: {len(pairs)}, Correct: {num_right}, Accuracy: {_hundredths(everything)}%, "
            f"IMG-Accuracy: {_hundredths(image_rows)}%"
        ),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How often the lenient rule could not tell, and how often the authors' script would have guessed."""
    pairs = list(zip(rows, predictions, strict=True))
    return {
        "lenient_unparsed": sum(infer_option(text, _choices(row)) is None for row, text in pairs),
        "official_random_fallback": sum(
            sentence_letter(text.strip()) not in _choices(row) for row, text in pairs
        ),
    }


def has_image(row: Row) -> bool:
    """True when the question has a picture. ``_has_image`` may stand for the picture in rows without it."""
    return bool(row["_has_image"]) if "_has_image" in row else row.get("image") is not None


def _accuracies(pairs: Sequence[tuple[Row, str]]) -> dict[str, Any]:
    rules: dict[str, Rule] = {
        "lmms_eval_exact_match": lmms,
        "lmms_eval_2025-05-19_5a1a31c8": lmms_may2025,
        "llava_eval_science_qa": llava,
        "vlmevalkit_exact": lenient,
    }
    shares = {name: percent(rule(row, text) for row, text in pairs) for name, rule in rules.items()}
    return {"n": len(pairs), **shares}


def _hundredths(accuracies: dict[str, Any]) -> str:
    share = accuracies["llava_eval_science_qa"]
    return "n/a" if share is None else f"{share:.2f}"


def _choices(row: Row) -> dict[str, str]:
    choices = column(row, "choices")
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        raise ScoringError(f"Column 'choices' holds {choices!r}; ScienceQA has a list of texts there.")
    return dict(zip(ascii_uppercase, choices, strict=False))


SCORER = Scorer(
    name="scienceqa",
    version="1",
    primary="lmms_eval (image_rows.lmms_eval_exact_match = scienceqa_img; all_rows = scienceqa full)",
    score=score,
    aggregate=aggregate,
    counts=counts,
    headline="score",
)


def question_with_options(row: Row) -> str:
    """The hint, if there is one, the question and its options. Lecture and solution give the answer away."""
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    return with_options(f"{context}{row['question']}", row["choices"])


def _shares_with_judge(
    rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]
) -> dict[str, Any]:
    judged = list(zip(rows, [found["correct"] for found in scores], strict=True))
    return {
        "vlmevalkit_judge": {
            "all_rows": percent(right for _, right in judged),
            "image_rows": percent(right for row, right in judged if has_image(row)),
        }
    }


JUDGING = of_options(
    question=question_with_options, choices=_choices, answer=target, aggregate=_shares_with_judge
)


PUBLISHED = PublishedSet(
    name="scienceqa",
    source="lmms-lab/ScienceQA",
    licence="CC BY-NC-SA 4.0",
    splits={
        "ScienceQA-IMG/test": 2017,
        "ScienceQA-FULL/test": 4241,
        "ScienceQA-IMG/validation": 2097,
        "ScienceQA-FULL/validation": 4241,
    },
    columns={
        "image": "image",
        "question": "string",
        "choices": "list<string>",
        "answer": "int8",
        "hint": "string",
        "task": "string",
        "grade": "string",
        "subject": "string",
        "topic": "string",
        "category": "string",
        "skill": "string",
        "lecture": "string",
        "solution": "string",
    },
    pictures=("image",),
    # The rows have no id of their own.
    id_of=lambda row, place: f"scienceqa-{place:05d}",
    kind_of=lambda row: str(row["subject"]),
    answers=lambda row: (target(row),),
    direct=lambda row: f"{question_with_options(row)}\n{ANSWER_WITH_A_LETTER}",
    look_again=question_with_options,
)
