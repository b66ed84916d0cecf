"""DocVQA (lmms-lab/DocVQA, config DocVQA, split validation): average normalised Levenshtein similarity, ANLS.

Reference: EvolvingLMMs-Lab/lmms-eval @75571cfe, ``anls`` of lmms_eval/api/metrics.py; VLMEvalKit @e8e78f05
(``anls_compute`` of vlmeval/dataset/utils/vqa_eval.py) does the same and multiplies by 100. Both differ from
the definition in the DocVQA paper in two ways, which are kept here because published numbers have them:

1. the distance is between normalised texts, but it is divided by the length of the texts as they came, in
   capitals: blanks around a wrong answer make it look closer;
2. a similarity of exactly one half is kept, where the paper drops it.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rapidfuzz.distance import Levenshtein

from models.benchmarks.published import ANSWER_WITH_A_WORD, PublishedSet
from models.benchmarks.scorer import Row, Score, Scorer, column
from models.errors import ScoringError

# Less similarity than this counts as none.
THRESHOLD = 0.5


def score(row: Row, prediction: str) -> Score:
    """``anls``: the similarity to the nearest gold answer, 0.0 or between 0.5 and 1.0."""
    answers = column(row, "answers")
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise ScoringError(f"Column 'answers' holds {answers!r}; DocVQA has a list of texts there.")
    if not answers:
        raise ScoringError(
            "Column 'answers' is empty (the test split hides them). Score the validation split."
        )
    similarity = 1 - min(distance(answer, prediction) for answer in answers)
    return {"anls": similarity if similarity >= THRESHOLD else 0.0}


def distance(answer: str, prediction: str) -> float:
    """Edits between the normalised texts over the longer raw length, at least 0; 0.0 for two empty texts."""
    # In capitals, because some letters become two: ß, ﬁ.
    length = max(len(answer.upper()), len(prediction.upper()))
    edits = Levenshtein.distance(_normalised(answer), _normalised(prediction))
    return edits / length if length else 0.0


def aggregate(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    """The mean as both references print it, and how many answers lie at the special values."""
    found = [each["anls"] for each in scores]
    return {
        "lmms_eval_anls_mean": fmean(found),
        "vlmevalkit_anls_x100": fmean(found) * 100,
        "n_zero": found.count(0.0),
        "n_one": found.count(1.0),
        "n_exactly_half": found.count(THRESHOLD),
    }


def counts(rows: Sequence[Row], predictions: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    """How many predictions were blank; every other text can be compared."""
    return {"blank": sum(not text.strip() for text in predictions)}


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())


SCORER = Scorer(
    name="docvqa",
    version="1",
    primary="lmms_eval api/metrics.py anls, threshold 0.5",
    score=score,
    aggregate=aggregate,
    counts=counts,
)


PUBLISHED = PublishedSet(
    name="docvqa",
    source="lmms-lab/DocVQA, configuration DocVQA",
    licence="apache-2.0 on the card; the pages come with the terms of the RRC challenge",
    # The answers of split test are kept by the authors; they score a submission.
    splits={"DocVQA/validation": 5349, "DocVQA/test": 5188, "DocVQA/train": 39463},
    columns={
        "questionId": "string",
        "question": "string",
        "question_types": "list<string>",
        "image": "image",
        "docId": "int64",
        "ucsf_document_id": "string",
        "ucsf_document_page_no": "string",
        "answers": "list<string>",
        "data_split": "string",
    },
    pictures=("image",),
    id_of=lambda row, place: str(row["questionId"]),
    kind_of=lambda row: "",
    answers=lambda row: tuple(row["answers"] or ()),
    direct=lambda row: f"{row['question']}\n{ANSWER_WITH_A_WORD}",
    look_again=lambda row: str(row["question"]),
)
