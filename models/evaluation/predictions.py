"""Predictions: attempts at questions with gold answers, scored, and their Parquet files.

An attempt that *we* broke (engine error, abort) is unscored: ``correct`` is None. It is counted wherever
predictions are summed up, and never counts as a wrong answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.answers import matches
from models.config import Style
from models.errors import ScoringError
from models.evaluation.ledger import RowFiles
from models.protocol import extract_answer, is_well_formed
from models.records import Question, read_rows, write_rows
from models.region import Box, PixelBudget, Size, View
from models.trajectory import Trajectory
from models.transcripts import (
    TRANSCRIPT_FIELDS,
    TRANSCRIPT_VERSION,
    Transcript,
    transcript_of,
    transcript_row,
)

PREDICTION_SCHEMA = pa.schema(
    [
        *TRANSCRIPT_FIELDS,
        ("kind", pa.string()),
        ("style", pa.string()),
        ("temperature", pa.float64()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("needs_look", pa.bool_()),
        ("first_box_iou", pa.float64()),
        ("first_box_coverage", pa.float64()),
        ("gold", pa.list_(pa.string())),
        ("gold_ious", pa.list_(pa.float64())),
        ("crop_coverages", pa.list_(pa.float64())),
        ("seconds", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scored attempt.

    ``answer`` is what was compared with the gold answers, None when there was none. ``correct`` is None when
    we broke. ``needs_look`` says that the question has gold boxes. The first box is the first one that was
    not refused; ``first_box_iou`` is its best IoU with a gold box and ``first_box_coverage`` the largest
    share of a gold box inside it, both None without a box or without gold.

    ``gold_ious`` has for every gold box the best IoU of an accepted box (0 without one), ``crop_coverages``
    for every crop that was shown the largest share of a gold box inside it; both are empty without gold.
    ``gold`` are the gold answers. ``seconds`` run from handing the question to the engine to its last token,
    the wait in a queue included.
    """

    transcript: Transcript
    kind: str
    style: Style
    temperature: float
    answer: str | None
    correct: bool | None
    needs_look: bool
    first_box_iou: float | None
    first_box_coverage: float | None
    gold: tuple[str, ...] = ()
    gold_ious: tuple[float, ...] = ()
    crop_coverages: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, float, int]:
        """What makes it one attempt of a variant: question, temperature and number of the sample."""
        return self.question_id, self.temperature, self.transcript.sample_index

    @property
    def question_id(self) -> str:
        """The question that was attempted."""
        return self.transcript.question_id

    @property
    def is_scored(self) -> bool:
        """False when we broke."""
        return self.correct is not None

    @property
    def is_well_formed(self) -> bool:
        """The format reward's rule (paper 3.3) on what the model wrote."""
        return is_well_formed(self.transcript.sampled_text)


def score(
    trajectory: Trajectory,
    question: Question,
    *,
    style: Style,
    temperature: float,
    budget: PixelBudget,
    seconds: float = 0.0,
) -> Prediction:
    """The attempt, compared with the question's gold answers and gold boxes.

    Raises ScoringError when the question has no gold answer or is another one.
    """
    if trajectory.question_id != question.id:
        raise ScoringError(f"Attempt at {trajectory.question_id!r} scored against question {question.id!r}.")
    if not question.answers:
        raise ScoringError(
            f"Question {question.id!r} has no gold answer, so no attempt can be scored. Leave it out."
        )
    text = trajectory.sampled_text
    answer = text.strip() if style == "direct" else extract_answer(text)
    transcript = Transcript.of(trajectory)
    golds = _gold_boxes(question, budget)
    first = transcript.accepted_boxes[0] if golds and transcript.accepted_boxes else None
    return Prediction(
        transcript=transcript,
        kind=question.kind,
        style=style,
        temperature=temperature,
        answer=answer,
        correct=None if trajectory.is_our_failure else matches(answer, question.answers),
        needs_look=bool(question.gold_boxes),
        # Of several gold boxes, any may be looked at first.
        first_box_iou=max(first.iou(gold) for gold in golds) if first else None,
        first_box_coverage=max(first.coverage_of(gold) for gold in golds) if first else None,
        gold=question.answers,
        gold_ious=tuple(
            max((box.iou(gold) for box in transcript.accepted_boxes), default=0.0) for gold in golds
        ),
        crop_coverages=tuple(
            max(crop.box.coverage_of(gold) for gold in golds) for crop in transcript.crops if golds
        ),
        seconds=seconds,
    )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    """Write predictions to one Parquet file and return their number."""
    return write_rows(path, PREDICTION_SCHEMA, map(_row, predictions), version=TRANSCRIPT_VERSION)


def read_predictions(path: Path) -> list[Prediction]:
    """All predictions of a Parquet file."""
    return [_prediction(row) for row in read_rows(path, PREDICTION_SCHEMA, version=TRANSCRIPT_VERSION)]


def rows_table(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, list[Any]]:
    """All attempts of all variants for a tracker, by column; the transcripts are in the files of rows."""
    rows = [(variant, each) for variant, found in predictions.items() for each in found]
    return {
        "variant": [variant for variant, _ in rows],
        "id": [each.question_id for _, each in rows],
        "kind": [each.kind for _, each in rows],
        "temperature": [each.temperature for _, each in rows],
        "sample": [each.transcript.sample_index for _, each in rows],
        "question": [each.transcript.question_text for _, each in rows],
        "gold": [" | ".join(each.gold) for _, each in rows],
        "prediction": [each.answer for _, each in rows],
        "correct": [each.correct for _, each in rows],
        "outcome": [str(each.transcript.stop) for _, each in rows],
        "tokens": [each.transcript.num_sampled_tokens for _, each in rows],
        "seconds": [each.seconds for _, each in rows],
    }


ATTEMPTS = RowFiles(read=read_predictions, write=write_predictions, is_broken=lambda p: not p.is_scored)


def _gold_boxes(question: Question, budget: PixelBudget) -> list[Box]:
    """The gold boxes in seen pixels."""
    view = View.of(Size(question.width, question.height), budget)
    return [view.convert(box, "seen") for box in question.gold_boxes]


def _row(prediction: Prediction) -> dict[str, object]:
    return {
        **transcript_row(prediction.transcript),
        "kind": prediction.kind,
        "style": prediction.style,
        "temperature": prediction.temperature,
        "answer": prediction.answer,
        "correct": prediction.correct,
        "needs_look": prediction.needs_look,
        "first_box_iou": prediction.first_box_iou,
        "first_box_coverage": prediction.first_box_coverage,
        "gold": prediction.gold,
        "gold_ious": prediction.gold_ious,
        "crop_coverages": prediction.crop_coverages,
        "seconds": prediction.seconds,
    }


def _prediction(row: dict[str, Any]) -> Prediction:
    return Prediction(
        transcript=transcript_of(row),
        kind=row["kind"],
        style=row["style"],
        temperature=row["temperature"],
        answer=row["answer"],
        correct=row["correct"],
        needs_look=row["needs_look"],
        first_box_iou=row["first_box_iou"],
        first_box_coverage=row["first_box_coverage"],
        gold=tuple(row["gold"]),
        gold_ious=tuple(row["gold_ious"]),
        crop_coverages=tuple(row["crop_coverages"]),
        seconds=row["seconds"],
    )
