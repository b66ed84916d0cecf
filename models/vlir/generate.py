"""Rejection sampling (paper 3.1.1): ask the teacher, keep the first try that passes every filter.

The teacher is any engine, and goes through the look-again loop of :mod:`models.rollout`, so that a crop in a
record is the crop a model would have been given. A question whose try was rejected is asked again, up to
``num_samples`` times; a question that was answered well costs no further tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models.config import Look
from models.engine import Engine
from models.protocol import BOX_STOP, extract_answer
from models.records import Question, RationaleStep, VLIRRecord
from models.region import Size, View
from models.rollout import derive_seed, rollout
from models.trajectory import CropSpan, Trajectory
from models.vlir.filters import Candidate, Judges, screen


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who writes the rationales. ``prompt_id`` names the prompt it is given, for the record."""

    engine: Engine
    name: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of some questions: one accepted record at most per question, and every rejected try."""

    accepted: tuple[VLIRRecord, ...]
    rejected: tuple[VLIRRecord, ...]
    judge_counts: Counter[str]

    @property
    def num_tries(self) -> int:
        """How often the teacher was asked."""
        return len(self.accepted) + len(self.rejected)


def generate(
    teacher: Teacher,
    questions: Sequence[Question],
    *,
    look: Look,
    judges: Judges,
    num_samples: int,
    temperature: float = 1.0,
    seed: int,
) -> Generation:
    """Rationales for some questions, accepted ones in the order of the questions.

    ``look`` holds the teacher's limits, which may be wider than the student's. Raises EngineError or
    ScoringError when the teacher's engine or a judge fails as a whole.
    """
    accepted: dict[str, VLIRRecord] = {}
    rejected: list[VLIRRecord] = []
    counts: Counter[str] = Counter()
    for attempt in range(num_samples):
        pending = [question for question in questions if question.id not in accepted]
        trajectories = rollout(
            teacher.engine,
            pending,
            look=look,
            temperature=temperature,
            seed=derive_seed(seed, "try", attempt),
        )
        candidates = [
            Candidate(to_record(question, trajectory, look=look, teacher=teacher), trajectory)
            for question, trajectory in zip(pending, trajectories, strict=True)
        ]
        screening = screen(candidates, look=look, judges=judges)
        counts += screening.judge_counts
        for record in screening.records:
            if record.reason:
                rejected.append(record)
            else:
                accepted[record.question.id] = record
    in_order = tuple(accepted[question.id] for question in questions if question.id in accepted)
    return Generation(in_order, tuple(rejected), counts)


def to_record(question: Question, trajectory: Trajectory, *, look: Look, teacher: Teacher) -> VLIRRecord:
    """The record of a try: each step is the text up to and including a crop command; the last has none."""
    steps: list[RationaleStep] = []
    text = ""
    for span in trajectory.spans:
        if not isinstance(span, CropSpan):
            text += span.text
            continue
        # A tokenizer may have glued characters to the closing brace; they belong after the crop.
        end = text.rindex(BOX_STOP) + 1
        steps.append(RationaleStep(text[:end], span.box))
        text = text[end:]
    steps.append(RationaleStep(text))
    seen = View.of(Size(question.width, question.height), look.budget).seen
    return VLIRRecord(
        question=question,
        steps=tuple(steps),
        final_answer=extract_answer(trajectory.text) or "",
        seen_size=(seen.width, seen.height),
        teacher=teacher.name,
        prompt_id=teacher.prompt_id,
    )
