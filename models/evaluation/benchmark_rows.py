"""The rows of a benchmark after they were asked: Parquet with the full transcript, one row per benchmark row.

Three outcomes are kept apart: *scored*; *failed*, because we broke (the engine, the scorer); and *unasked*,
because a picture of the row cannot be used or the row does not fit the context. Only the first has a score.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from models.answer_rules import AnswerRule, read_answer
from models.benchmarks.published import PublishedSet
from models.benchmarks.scorer import Row, Score, Scorer
from models.config import Style
from models.errors import ScoringError
from models.evaluation.ledger import RowFiles
from models.records import read_rows, write_rows
from models.trajectory import Trajectory
from models.transcripts import (
    TRANSCRIPT_FIELDS,
    TRANSCRIPT_VERSION,
    Transcript,
    transcript_of,
    transcript_row,
)

Outcome = Literal["scored", "failed", "unasked"]

ROW_SCHEMA = pa.schema(
    [
        *TRANSCRIPT_FIELDS,
        ("variant", pa.string()),
        ("category", pa.string()),
        ("gold", pa.list_(pa.string())),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("prediction", pa.string()),
        ("score", pa.string()),
        ("judged", pa.string()),
        ("seconds", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row of a benchmark and what became of it.

    ``transcript`` is None when the row was not put to the model. ``prediction`` is the text that the scorer
    gets: what the model's rule reads in a direct answer, otherwise the body of ``<answer>``; None when there
    is none. ``score`` is None before scoring and for a row that has no score; ``reason`` then says why.
    ``judged`` is the score with a judge, None without one.
    ``seconds`` run from handing the row to the engine to its last token, the wait in a queue included.
    ``variant`` names how crop commands were answered; ``category`` and the ``gold`` answers are those of the
    published row.
    """

    id: str
    question_text: str
    outcome: Outcome
    reason: str = ""
    transcript: Transcript | None = None
    prediction: str | None = None
    score: Score | None = None
    judged: Score | None = None
    seconds: float = 0.0
    variant: str = ""
    category: str = ""
    gold: tuple[str, ...] = ()

    @classmethod
    def unasked(cls, id: str, question_text: str, reason: str) -> "AskedRow":
        """A row that cannot be put to a model."""
        return cls(id, question_text, "unasked", reason)

    @classmethod
    def of(
        cls, trajectory: Trajectory, *, style: Style, seconds: float, rule: AnswerRule = "whole"
    ) -> "AskedRow":
        """A row that an engine has dealt with; not scored yet. ``rule`` reads a direct answer."""
        outcome, reason = _outcome(trajectory)
        answer = read_answer(trajectory.sampled_text, rule if style == "direct" else "answer_tag")
        return cls(
            id=trajectory.question_id,
            question_text=trajectory.prompt.text,
            outcome=outcome,
            reason=reason,
            transcript=Transcript.of(trajectory),
            prediction=answer if outcome == "scored" else None,
            seconds=seconds,
        )

    @property
    def num_tokens(self) -> int | None:
        """Tokens that the model sampled; None when it was not asked or its endpoint does not count."""
        if self.transcript is None:
            return None
        return self.transcript.num_sampled_tokens or (None if self.transcript.sampled_text else 0)

    def about(self, row: Row, published: PublishedSet, *, variant: str) -> "AskedRow":
        """The same with what its published row says, and the variant it was asked under."""
        category, gold = published.kind_of(row), published.answers(row)
        return replace(self, variant=variant, category=category, gold=gold)

    def scored(self, row: Row, scorer: Scorer) -> "AskedRow":
        """The same with its score. No answer is scored as an empty text: that is the model's doing."""
        if self.outcome != "scored":
            return self
        try:
            return replace(self, score=scorer.score(row, self.prediction or ""))
        except ScoringError as error:
            return replace(self, outcome="failed", reason=f"scorer: {error}")


def write_asked(path: Path, rows: Iterable[AskedRow]) -> int:
    """Write rows to one Parquet file and return their number."""
    return write_rows(path, ROW_SCHEMA, map(_row, rows), version=TRANSCRIPT_VERSION)


def read_asked(path: Path) -> list[AskedRow]:
    """All rows of a Parquet file, or of a folder of them."""
    return [_asked(row) for row in read_rows(path, ROW_SCHEMA, version=TRANSCRIPT_VERSION)]


ASKED = RowFiles(read=read_asked, write=write_asked, is_broken=lambda row: row.outcome == "failed")


def _outcome(trajectory: Trajectory) -> tuple[Outcome, str]:
    if trajectory.stop.is_our_failure:
        return "failed", f"{trajectory.stop}: {trajectory.detail}"
    if trajectory.is_unasked:
        return "unasked", "The prompt fills engine.max_model_len, so nothing could be sampled. Raise it."
    return "scored", ""


def _row(asked: AskedRow) -> dict[str, object]:
    transcript = {} if asked.transcript is None else transcript_row(asked.transcript)
    return {
        **transcript,
        "question_id": asked.id,
        "question_text": asked.question_text,
        "variant": asked.variant,
        "category": asked.category,
        "gold": asked.gold,
        "outcome": asked.outcome,
        "reason": asked.reason,
        "prediction": asked.prediction,
        "score": _json(asked.score),
        "judged": _json(asked.judged),
        "seconds": asked.seconds,
        "num_tokens": asked.num_tokens,
    }


def _json(score: Score | None) -> str | None:
    return None if score is None else json.dumps(score, ensure_ascii=False)


def _asked(row: dict[str, Any]) -> AskedRow:
    return AskedRow(
        id=row["question_id"],
        question_text=row["question_text"],
        outcome=row["outcome"],
        reason=row["reason"],
        transcript=None if row["stop"] is None else transcript_of(row),
        prediction=row["prediction"],
        score=None if row["score"] is None else json.loads(row["score"]),
        judged=None if row["judged"] is None else json.loads(row["judged"]),
        seconds=row["seconds"],
        variant=row["variant"],
        category=row["category"],
        gold=tuple(row["gold"]),
    )
