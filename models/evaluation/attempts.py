"""Attempts of one variant: which are still to be made, and how they are made and scored."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from models.config import Look
from models.engine import Engine
from models.evaluation.predictions import Prediction, score
from models.records import Question
from models.rollout import stream
from models.run_config import EvaluationRun, EvaluationVariant

# Attempts in flight, in batches of the engine.
_QUEUE_FACTOR = 2

# What makes an attempt one of a variant: question, temperature, number of the sample.
Key = tuple[str, float, int]


@dataclass(frozen=True, slots=True)
class Work:
    """Questions to ask, each ``num_samples`` times."""

    questions: Sequence[Question]
    num_samples: int
    temperature: float

    def attempts(self) -> Iterator[Key]:
        """The attempts that this is."""
        for question in self.questions:
            for number in range(self.num_samples):
                yield question.id, self.temperature, number

    def without(self, kept: Collection[Key]) -> "Work":
        """The questions of which an attempt is missing; all their attempts are made again."""
        missing = {id for id, temperature, number in self.attempts() if (id, temperature, number) not in kept}
        return replace(self, questions=[question for question in self.questions if question.id in missing])


def attempt(
    engine: Engine, variant: EvaluationVariant, work: Work, config: EvaluationRun
) -> Iterator[Prediction]:
    """Scored attempts as they finish."""
    look = _look(config.look, variant)
    by_id = {question.id: question for question in work.questions}
    started: dict[tuple[str, int], float] = {}

    def handed_over() -> Iterator[Question]:
        for question in work.questions:
            for number in range(work.num_samples):
                started[question.id, number] = time.monotonic()
                yield question

    attempts = stream(
        engine,
        questions=handed_over(),
        look=look,
        num_samples=work.num_samples,
        temperature=work.temperature,
        seed=config.seed,
        # Enough to keep the engine's batch full, without holding every picture of the set in memory.
        max_in_flight=_QUEUE_FACTOR * config.engine.max_num_seqs,
    )
    for trajectory in attempts:
        yield score(
            trajectory,
            by_id[trajectory.question_id],
            style=variant.style,
            temperature=work.temperature,
            budget=look.budget,
            seconds=time.monotonic() - started.pop((trajectory.question_id, trajectory.sample_index)),
        )


def _look(look: Look, variant: EvaluationVariant) -> Look:
    """The rules of looking again for this variant: a direct answer has no system prompt and no crops."""
    if variant.style == "direct":
        return look.model_copy(update={"system": None, "max_crops": 0})
    return look.model_copy(update={"crop_source": variant.crop_source, "corruption": variant.corruption})
