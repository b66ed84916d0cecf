"""Who has questions answered: the teacher and the judges in this process, or in several of their own.

A teacher on this machine takes all of its cores by itself. One at an endpoint leaves them to us: pictures,
prompts, connections and filters of hundreds of requests in flight are more than one Python process can do
(:mod:`models.vlir.workers`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.ahead import ahead
from models.records import Question, rationale_row
from models.run_config import VLIRRun
from models.tiny.world import Scene, WorldQuestion
from models.vlir.entries import Loading, Material, Ready
from models.vlir.filters import Judges
from models.vlir.generate import Task, Tried, generate
from models.vlir.judge_endpoints import open_judge
from models.vlir.sources.base import Fault
from models.vlir.teachers import open_teacher


@dataclass(frozen=True, slots=True)
class Order:
    """A question to ask, from try number ``attempt`` on. ``ticket`` names it until it is settled."""

    ticket: int
    material: Material
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A question whose picture was decoded. ``changes`` names what was done to the picture's file."""

    question: Question
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A finished try as it goes between processes and into files: ``rationale`` is what
    :func:`models.records.rationale_row` makes.
    """

    number: int
    rationale: Mapping[str, Any]
    judge_counts: Mapping[str, int]
    prompt_tokens: int
    sampled_tokens: int

    @classmethod
    def of(cls, tried: Tried) -> "Attempt":
        """A try of this process."""
        return cls(
            number=tried.task.attempt,
            rationale=rationale_row(tried.record),
            judge_counts=tried.judge_counts,
            prompt_tokens=tried.prompt_tokens,
            sampled_tokens=tried.sampled_tokens,
        )

    @property
    def reason(self) -> str:
        """Why it was rejected; empty when it was accepted."""
        reason: str = self.rationale["reason"]
        return reason

    @property
    def evidence(self) -> str:
        """That of the last verdict."""
        evidence: str = json.loads(self.rationale["verdicts"])[-1]["evidence"]
        return evidence


OnLoaded = Callable[[int, Loaded | Fault], None]


class Asker(Protocol):
    """Somebody who has orders carried out."""

    @property
    def max_in_flight(self) -> int:
        """How many questions are asked at once."""

    @property
    def metered(self) -> Mapping[str, object]:
        """The teacher and the judges, some of whom count what they are asked for."""

    def answer(self, orders: Iterator[Order | None], on_loaded: OnLoaded) -> Iterator[tuple[int, Attempt]]:
        """Tries with the ticket of their order, as they finish. Each order is loaded first: ``on_loaded``
        gets its question, or the fault that ends it.

        A None among the orders means: there are more, but not before something is done. Raises EngineError
        or ScoringError when the teacher or a judge fails as a whole, RecordError for a leak.
        """

    def close(self) -> None:
        """Leave no request running."""


class LocalAsker:
    """The teacher and the judges in this process."""

    def __init__(
        self,
        request: VLIRRun,
        loading: Loading,
        scenes: Mapping[str, tuple[Scene, WorldQuestion]],
    ) -> None:
        """Raises ConfigError or EngineError when the teacher cannot be opened."""
        self._loading, self._num_samples = loading, request.vlir.num_samples
        self._teacher = open_teacher(request, loading.look, scenes)
        self._judges = open_judges(request)

    @property
    def max_in_flight(self) -> int:
        """As the teacher says."""
        return self._teacher.max_in_flight

    @property
    def metered(self) -> Mapping[str, object]:
        """The teacher's engine, and the judges."""
        return {
            "teacher": self._teacher.engine,
            "semantic_unit": self._judges.semantic_unit,
            "coherence": self._judges.coherence,
        }

    def answer(self, orders: Iterator[Order | None], on_loaded: OnLoaded) -> Iterator[tuple[int, Attempt]]:
        """As :class:`Asker` says; the next pictures are decoded while the teacher writes."""
        tried = generate(
            self._teacher,
            self._tasks(orders, on_loaded),
            look=self._loading.look,
            judges=self._judges,
            num_samples=self._num_samples,
        )
        for each in tried:
            yield each.task.place, Attempt.of(each)

    def close(self) -> None:
        """Close the engine and the judges."""
        self._teacher.engine.close()
        self._judges.close()

    def _tasks(self, orders: Iterator[Order | None], on_loaded: OnLoaded) -> Iterator[Task | None]:
        for order, found in ahead(self._load, orders):
            if order is None or found is None:
                yield None
                continue
            task = task_of(order, found, on_loaded)
            if task is not None:
                yield task

    def _load(self, order: Order | None) -> Ready | Fault | None:
        return None if order is None else order.material.load(self._loading)


def task_of(order: Order, found: Ready | Fault, on_loaded: OnLoaded) -> Task | None:
    """Tell of what was loaded; the task that comes of it, if any."""
    on_loaded(order.ticket, loaded(found))
    return None if isinstance(found, Fault) else Task(found, order.attempt, order.seed, order.ticket)


def loaded(found: Ready | Fault) -> Loaded | Fault:
    """What of a loaded entry is kept."""
    return found if isinstance(found, Fault) else Loaded(found.question, found.changes)


def open_judges(request: VLIRRun) -> Judges:
    """Both judges of a configuration."""
    engine = request.vlir.teacher.engine
    place = engine.endpoint if engine is not None else ""
    return Judges(
        open_judge(request.vlir.semantic_unit, "semantic_unit", teacher_endpoint=place),
        open_judge(request.vlir.coherence, "coherence", teacher_endpoint=place),
    )


def open_asker(
    request: VLIRRun, loading: Loading, scenes: Mapping[str, tuple[Scene, WorldQuestion]]
) -> Asker:
    """The asker of a configuration. ``scenes`` are what the drawn world's author knows.

    Raises ConfigError or EngineError when the teacher cannot be opened.
    """
    if request.vlir.teacher.kind == "http":
        from models.vlir.workers import Workers

        return Workers(request, loading)
    return LocalAsker(request, loading, scenes)
