"""The rows of a benchmark after they were asked: Parquet with the full transcript, one row per benchmark row.

Three outcomes are kept apart: *scored*; *failed*, because we broke (the engine, the scorer); and *unasked*,
because the row has not exactly one usable picture or does not fit the context. Only the first has a score.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from models.answer_rules import AnswerRule, read_answer
from models.benchmarks.scorer import Row, Score, Scorer
from models.config import Style
from models.errors import ScoringError
from models.records import read_rows, write_rows
from models.trajectory import StopReason, Trajectory
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
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("prediction", pa.string()),
        ("score", pa.string()),
        ("seconds", pa.float64()),
        ("num_tokens", pa.int64()),
    ]
)

# A file is closed after so many rows, or so many seconds: what a killed process loses at most.
_ROWS_PER_FILE = 64
_SECONDS_PER_FILE = 30.0


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row of a benchmark and what became of it.

    ``transcript`` is None when the row was not put to the model. ``prediction`` is the text that the scorer
    gets: what the model's rule reads in a direct answer, otherwise the body of ``<answer>``; None when there
    is none. ``score`` is None before scoring and for a row that has no score; ``reason`` then says why.
    ``seconds`` run from handing the row to the engine to its last token, the wait in a queue included.
    """

    id: str
    question_text: str
    outcome: Outcome
    reason: str = ""
    transcript: Transcript | None = None
    prediction: str | None = None
    score: Score | None = None
    seconds: float = 0.0

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


@dataclass(slots=True)
class Ledger:
    """The rows that were asked so far, in a folder of small files that outlive an interruption.

    Rows that we broke are not kept: the next start asks them again.
    """

    folder: Path
    _waiting: list[AskedRow] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, AskedRow]:
        """The rows of earlier starts by id."""
        if not any(self.folder.glob("*.parquet")):
            return {}
        return {row.id: row for row in read_asked(self.folder)}

    def add(self, row: AskedRow) -> None:
        """Take a row; it is on disk after some more rows or seconds, or after :meth:`flush`."""
        if row.outcome != "failed":
            self._waiting.append(row)
        is_due = time.monotonic() - self._written >= _SECONDS_PER_FILE
        if is_due or len(self._waiting) >= _ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Put on disk what waits."""
        if self._waiting:
            number = 1 + max((int(path.stem) for path in self.folder.glob("*.parquet")), default=0)
            write_asked(self.folder / f"{number:06d}.parquet", self._waiting)
            self._waiting = []
        self._written = time.monotonic()


def _outcome(trajectory: Trajectory) -> tuple[Outcome, str]:
    if trajectory.stop.is_our_failure:
        return "failed", f"{trajectory.stop}: {trajectory.detail}"
    if trajectory.stop is StopReason.CONTEXT_LIMIT and not trajectory.sampled_text:
        return "unasked", "The prompt fills engine.max_model_len, so nothing could be sampled. Raise it."
    return "scored", ""


def _row(asked: AskedRow) -> dict[str, object]:
    transcript = {} if asked.transcript is None else transcript_row(asked.transcript)
    return {
        **transcript,
        "question_id": asked.id,
        "question_text": asked.question_text,
        "outcome": asked.outcome,
        "reason": asked.reason,
        "prediction": asked.prediction,
        "score": None if asked.score is None else json.dumps(asked.score, ensure_ascii=False),
        "seconds": asked.seconds,
        "num_tokens": asked.num_tokens,
    }


def _asked(row: dict[str, Any]) -> AskedRow:
    return AskedRow(
        id=row["question_id"],
        question_text=row["question_text"],
        outcome=row["outcome"],
        reason=row["reason"],
        transcript=None if row["stop"] is None else transcript_of(row),
        prediction=row["prediction"],
        score=None if row["score"] is None else json.loads(row["score"]),
        seconds=row["seconds"],
    )
