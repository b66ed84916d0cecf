"""What crops are worth to the policy: held-out questions answered twice, with crops and with blank ones.

Greedily, by the engine that samples, from the weights that it has: the difference of the two accuracies is
what the pixels of a crop add, for a blank crop has its size, its tokens and its place in the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from models import distributed
from models.answers import matches
from models.config import CropSourceName, Look
from models.protocol import extract_answer
from models.records import Question, write_rows
from models.rgrpo.guards import CROP_GAIN
from models.rgrpo.samplers import Sampler
from models.rundir import PROBES
from models.trajectory import Trajectory
from models.transcripts import TRANSCRIPT_FIELDS, TRANSCRIPT_VERSION, Transcript, transcript_row

PROBE_SCHEMA = pa.schema(
    [
        *TRANSCRIPT_FIELDS,
        ("step", pa.int32()),
        ("kind", pa.string()),
        ("crop_source", pa.string()),
        ("is_correct", pa.bool_()),  # null: we broke the attempt
    ]
)


@dataclass(frozen=True, slots=True)
class _Probed:
    trajectory: Trajectory
    question: Question
    crop_source: CropSourceName
    is_correct: bool | None


def probe_path(run: Path, step: int) -> Path:
    """Where a run keeps the answers of the probe before a step."""
    return run / PROBES / f"probe-{step}.parquet"


def measure_crop_gain(
    sampler: Sampler, questions: Sequence[Question], *, look: Look, run: Path, step: int
) -> dict[str, float]:
    """Accuracies (0 to 1) over the questions of all ranks, and their difference; all ranks call it.

    ``questions`` are this rank's. An attempt that we broke is left out of its side; a side without attempts
    gives nothing. Every answer is kept in the run directory.
    """
    blank = look.model_copy(update={"crop_source": "blank"})
    sides = [list(_answers(sampler, questions, one)) for one in (look, blank)]
    _keep(probe_path(run, step), [one for side in sides for one in side], step)
    right, num, right_blank, num_blank = distributed.global_sums(
        [count for side in sides for count in _counts(side)]
    )
    if not num or not num_blank:
        return {}
    accuracy, accuracy_blank = right / num, right_blank / num_blank
    return {
        "rgrpo/probe/accuracy": accuracy,
        "rgrpo/probe/accuracy_blank": accuracy_blank,
        CROP_GAIN: accuracy - accuracy_blank,
    }


def _answers(sampler: Sampler, questions: Sequence[Question], look: Look) -> Iterator[_Probed]:
    for trajectory, question in zip(sampler.roll_out(questions, look=look), questions, strict=True):
        is_right = matches(extract_answer(trajectory.sampled_text), question.answers)
        scored = None if trajectory.is_our_failure else is_right
        yield _Probed(trajectory, question, look.crop_source, scored)


def _counts(side: Sequence[_Probed]) -> tuple[int, int]:
    """Right answers, and attempts that were ours to score."""
    scored = [one.is_correct for one in side if one.is_correct is not None]
    return sum(scored), len(scored)


def _keep(path: Path, answers: Sequence[_Probed], step: int) -> None:
    rows = [
        {
            **transcript_row(Transcript.of(one.trajectory)),
            "step": step,
            "kind": one.question.kind,
            "crop_source": one.crop_source,
            "is_correct": one.is_correct,
        }
        for one in answers
    ]
    everywhere = [row for share in distributed.from_all_ranks(rows) for row in share]
    if distributed.is_main():
        write_rows(path, PROBE_SCHEMA, everywhere, version=TRANSCRIPT_VERSION)
