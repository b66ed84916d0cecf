"""Every step's rollouts on disk: ``rollouts/step-N.parquet``, a row per rollout.

A row is the transcript (what was sampled with its log-probs and the version of the weights, what was given,
boxes, digests of crops, the reward in parts, the stop reason), the whole sequence as engine and trainer have
it with the mask of what was sampled, and the advantage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from models import distributed
from models.config import Look
from models.errors import RecordError
from models.records import Question, read_rows, write_rows
from models.rgrpo.batch import Rollout
from models.rollout import Asked
from models.rundir import ROLLOUTS
from models.trajectory import CropSpan, Span, Trajectory
from models.transcripts import (
    TRANSCRIPT_FIELDS,
    TRANSCRIPT_VERSION,
    GivenCrop,
    Transcript,
    recut,
    transcript_of,
    transcript_row,
)

ROLLOUT_SCHEMA = pa.schema(
    [
        *TRANSCRIPT_FIELDS,
        ("step", pa.int32()),
        ("kind", pa.string()),
        ("advantage", pa.float64()),
        ("is_trained", pa.bool_()),
        # The prompt, one pad per visual token, refusals and crops included, to the last token that was
        # sampled; null where the trajectory cannot be encoded.
        ("token_ids", pa.list_(pa.int32())),
        ("sampled_mask", pa.list_(pa.bool_())),
    ]
)


@dataclass(frozen=True, slots=True)
class KeptRollout:
    """A rollout as it was kept: see :class:`models.rgrpo.batch.Rollout`. ``token_ids`` and ``sampled_mask``
    have one length T."""

    transcript: Transcript
    kind: str
    advantage: float
    is_trained: bool
    token_ids: tuple[int, ...] | None
    sampled_mask: tuple[bool, ...] | None


def rollouts_path(run: Path, step: int) -> Path:
    """Where a run keeps the rollouts of a step."""
    return run / ROLLOUTS / f"step-{step}.parquet"


def steps_kept(run: Path) -> list[int]:
    """The steps whose rollouts a run keeps, ascending."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / ROLLOUTS).glob("step-*.parquet"))


def read_rollouts(path: Path) -> list[KeptRollout]:
    """All rollouts of a step, in group order."""
    rows = read_rows(path, ROLLOUT_SCHEMA, version=TRANSCRIPT_VERSION)
    return [
        KeptRollout(
            transcript_of(row),
            kind=row["kind"],
            advantage=row["advantage"],
            is_trained=row["is_trained"],
            token_ids=None if row["token_ids"] is None else tuple(row["token_ids"]),
            sampled_mask=None if row["sampled_mask"] is None else tuple(row["sampled_mask"]),
        )
        for row in rows
    ]


def write_rollouts(path: Path, rollouts: Sequence[Rollout], *, step: int) -> None:
    """Write the rollouts of all ranks to one file; all ranks call it."""
    rows = [_row(rollout, step) for rollout in rollouts]
    everywhere = [row for share in distributed.from_all_ranks(rows) for row in share]
    if distributed.is_main():
        write_rows(path, ROLLOUT_SCHEMA, everywhere, version=TRANSCRIPT_VERSION)


def _row(rollout: Rollout, step: int) -> dict[str, object]:
    encoded = rollout.encoded
    return {
        **transcript_row(Transcript.of(rollout.trajectory)),
        "step": step,
        "kind": rollout.kind,
        "advantage": rollout.advantage,
        "is_trained": rollout.is_trained,
        "token_ids": None if encoded is None else encoded.ids.astype(np.int32),
        "sampled_mask": None if encoded is None else encoded.sampled,
    }


def rebuilt(transcript: Transcript, question: Question, look: Look) -> Trajectory:
    """The trajectory that a transcript was made of, its pictures drawn again.

    Raises RecordError when one differs from what the model was shown.
    """
    asked = Asked.of(question, look)
    shown = tuple(view.digest for view in transcript.views)
    seen = tuple(picture.digest for picture in asked.prompt.pictures)
    if shown != seen or (transcript.question_text, transcript.system) != (
        asked.prompt.text,
        asked.prompt.system,
    ):
        raise RecordError(
            f"Question {question.id!r} is no longer what the model was asked: its text, its system prompt or "
            "its picture differs. Use the questions and the pixel budget of the run."
        )

    def with_pixels(span: Span | GivenCrop) -> Span:
        if not isinstance(span, GivenCrop):
            return span
        if not 1 <= span.image <= len(asked.images):
            raise RecordError(
                f"A crop is of picture {span.image} of question {question.id!r}, which has "
                f"{len(asked.images)}. Restore the file of rollouts."
            )
        image = asked.images[span.image - 1]
        return CropSpan(recut(image, span, budget=look.budget, source=look.crop_source), span.box, span.image)

    return Trajectory(
        question_id=transcript.question_id,
        sample_index=transcript.sample_index,
        prompt=asked.prompt,
        spans=tuple(map(with_pixels, transcript.spans)),
        events=transcript.events,
        stop=transcript.stop,
        detail=transcript.detail,
    )
