"""Where the gallery's trajectories come from: the predictions of an evaluation, the rollouts of R-GRPO."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from models.config import CropSourceName
from models.evaluation.gallery import Attempt, Column, GallerySet, Subject
from models.evaluation.predictions import Prediction, read_predictions
from models.protocol import extract_answer
from models.records import read_questions, read_rows
from models.transcripts import TRANSCRIPT_FIELDS, TRANSCRIPT_VERSION, transcript_of

# What R-GRPO writes beside a transcript, as far as the gallery shows it.
_ROLLOUT_SCHEMA = pa.schema([*TRANSCRIPT_FIELDS, ("kind", pa.string()), ("advantage", pa.float64())])


def evaluated(
    rows: Sequence[tuple[str, str, CropSourceName, Path]],
    questions_path: Path,
    *,
    compare: tuple[str, str],
    num_trajectories: int,
) -> GallerySet:
    """The greedy attempts at the held-out questions; a row is its name, label, crop source and file."""
    columns = tuple(
        Column(name, label, {found.question_id: _attempt(found) for found in _greedy(path)}, crop_source)
        for name, label, crop_source, path in rows
    )
    return GallerySet(
        name="held-out",
        label="held-out",
        columns=columns,
        subjects=lambda ids: _subjects(questions_path, ids),
        compare=compare,
        num_trajectories=num_trajectories,
    )


def rolled_out(
    files: Mapping[str, Path], questions_path: Path, *, crop_source: CropSourceName, num_trajectories: int
) -> list[GallerySet]:
    """R-GRPO's rollouts with their rewards: a set per step, a column per sample of a group."""
    return [
        GallerySet(
            name=name,
            label=f"R-GRPO rollouts, {name}",
            columns=_samples(path, crop_source),
            subjects=lambda ids: _subjects(questions_path, ids),
            compare=("0", "1"),
            num_trajectories=num_trajectories // len(files),
        )
        for name, path in files.items()
    ]


def _greedy(path: Path) -> list[Prediction]:
    return [found for found in read_predictions(path) if found.temperature == 0]


def _attempt(found: Prediction) -> Attempt:
    return Attempt(
        transcript=found.transcript,
        correct=found.correct,
        answer=found.answer,
        kind=found.kind,
        first_box_iou=found.first_box_iou,
    )


def _samples(path: Path, crop_source: CropSourceName) -> tuple[Column, ...]:
    attempts: dict[int, dict[str, Attempt]] = {}
    for row in read_rows(path, _ROLLOUT_SCHEMA, version=TRANSCRIPT_VERSION):
        transcript = transcript_of(row)
        reward = transcript.reward
        attempts.setdefault(transcript.sample_index, {})[transcript.question_id] = Attempt(
            transcript=transcript,
            correct=None if reward is None else reward.accuracy > 0,
            answer=extract_answer(transcript.sampled_text),
            kind=row["kind"],
            # An unscored rollout has no advantage: NaN, for which JSON has no word.
            advantage=None if reward is None else row["advantage"],
        )
    return tuple(
        Column(str(index), f"sample {index + 1}", found, crop_source)
        for index, found in sorted(attempts.items())
    )


def _subjects(path: Path, ids: Collection[str]) -> Iterator[Subject]:
    return (Subject.of(question) for question in read_questions(path) if question.id in ids)
