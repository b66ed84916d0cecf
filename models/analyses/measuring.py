"""The measurements that the paper's analyses are made of: one model, one variant, one set of questions.

Held-out questions and published benchmarks are measured by the code that evaluates them anyway
(:mod:`models.evaluation.evaluate`, :mod:`models.evaluation.benchmark`), in run directories of their own: what
an earlier start has measured is not measured again.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from models.benchmarks.published import get_published
from models.benchmarks.scorer import get_scorer
from models.benchmarks.sets import read_set
from models.config import BoxCorruption, CropSourceName, Look, Style, resolve_model_path
from models.engine import Engine
from models.evaluation.benchmark import measure as measure_benchmark
from models.evaluation.benchmark import open_engine, rules
from models.evaluation.benchmark_rows import read_asked
from models.evaluation.evaluate import evaluate, in_fixed_order
from models.evaluation.metrics import bootstrap_mean, wilson_interval
from models.evaluation.predictions import Prediction, read_predictions
from models.evaluation.results import Estimate
from models.evaluation.switch import Engines, EngineSwitch
from models.evaluation.variants import FULL, Variant
from models.records import Question, read_questions
from models.region import Box, Size, View
from models.rollout import Asked, derive_seed
from models.run_config import AnalysisRun, BenchmarkRun, EvaluationRun, EvaluationVariant
from models.rundir import RunDir
from models.trajectory import GenerationRequest, Piece
from models.transcripts import Transcript

# All kinds of questions of a set together.
ALL = "all"


@dataclass(frozen=True, slots=True)
class Asking:
    """One measurement: a model, how it is asked, and how its crop commands are answered."""

    name: str
    model_path: str
    style: Style = "look-again"
    crop_source: CropSourceName = "original"
    corruption: BoxCorruption | None = None

    @classmethod
    def of(cls, variant: Variant, model_path: str, *, own_accuracy: float = 1.0) -> "Asking":
        """A named variant of a model; ``own_accuracy`` is the share of its boxes that are accurate."""
        corruption = variant.corruption(own_accuracy)
        return cls(variant.name, model_path, crop_source=variant.crop_source, corruption=corruption)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One question and what came of it.

    ``value`` is the score from 0 to 1, None when we broke or the row cannot be asked; ``golds`` are the gold
    boxes in seen pixels, where they are known.
    """

    question_id: str
    kind: str
    value: float | None
    transcript: Transcript | None
    golds: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Attempts that are summed up together: a whole set, or one kind of its questions."""

    name: str
    attempts: tuple[Attempt, ...]
    is_similarity: bool = False

    @property
    def values(self) -> dict[str, float]:
        """The scores by question."""
        return {one.question_id: one.value for one in self.attempts if one.value is not None}

    @property
    def accuracy(self) -> Estimate:
        """Mean score with its 95 % interval: Wilson for right and wrong, bootstrap for a similarity."""
        values = list(self.values.values())
        if self.is_similarity:
            return bootstrap_mean(values, seed=0)
        return wilson_interval(sum(value == 1.0 for value in values), len(values))


class Source(Protocol):
    """A set of questions that can be measured."""

    @property
    def name(self) -> str:
        """What the set is called in tables and figures."""

    def measure(self, askings: Sequence[Asking]) -> dict[str, list[Group]]:
        """The groups of every measurement, by its name; the first group is the whole set."""


class Borrowed:
    """An engine that outlives who uses it: closing it gives it back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request."""
        self._engine.submit(request)

    def step(self) -> list[Piece]:
        """Advance the requests in flight."""
        return self._engine.step()

    def abort(self, request_id: str) -> None:
        """Forget a request in flight."""
        self._engine.abort(request_id)

    def close(self) -> None:
        """Give the engine back."""


@dataclass(frozen=True, slots=True)
class Lender:
    """Engines for several measurements in a row, all on the one engine of a switch."""

    switch: EngineSwitch

    def open(self, model_path: Path) -> Engine:
        """The engine with the weights of that folder."""
        return Borrowed(self.switch.use(model_path))

    def reload(self, engine: Engine, model_path: Path) -> Engine:
        """The engine with the weights of another folder."""
        return self.open(model_path)


@dataclass(slots=True)
class HeldOut:
    """The held-out questions of the world; gold boxes are known."""

    run: RunDir
    config: AnalysisRun
    engines: Engines
    name: str = "held-out questions"
    questions: list[Question] = field(init=False)

    def __post_init__(self) -> None:
        questions = in_fixed_order(read_questions(Path(self.config.questions_path)))
        self.questions = questions[: self.config.num_questions]

    def measure(self, askings: Sequence[Asking]) -> dict[str, list[Group]]:
        """Every measurement on the same questions; a group per kind follows the whole set."""
        config = self._request(askings)
        identity = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
        run = RunDir.create(self.run.path / "measured" / identity, config)
        evaluate(run, config, self.questions, self.engines)
        return {one.name: self._groups(run, one) for one in askings}

    def _request(self, askings: Sequence[Asking]) -> EvaluationRun:
        return EvaluationRun(
            variants=tuple(
                EvaluationVariant(
                    name=one.name,
                    model_path=one.model_path,
                    style=one.style,
                    crop_source=one.crop_source,
                    corruption=one.corruption,
                    num_questions=len(self.questions),
                )
                for one in askings
            ),
            questions_path=self.config.questions_path,
            look=self.config.look,
            engine=self.config.engine,
            evaluation=self.config.evaluation,
            seed=self.config.seed,
        )

    def _groups(self, run: RunDir, asking: Asking) -> list[Group]:
        by_id = {question.id: question for question in self.questions}
        predictions = read_predictions(run.path / "predictions" / f"{asking.name}.parquet")
        attempts = [self._attempt(found, by_id[found.question_id]) for found in predictions]
        kinds = Counter(attempt.kind for attempt in attempts).most_common()
        parts = [Group(kind, tuple(one for one in attempts if one.kind == kind)) for kind, _ in kinds]
        return [Group(ALL, tuple(attempts)), *(parts if len(kinds) > 1 else [])]

    def _attempt(self, found: Prediction, question: Question) -> Attempt:
        view = View.of(Size(question.width, question.height), self.config.look.budget)
        golds = tuple(view.convert(box, "seen") for box in question.gold_boxes)
        value = None if found.correct is None else float(found.correct)
        return Attempt(found.question_id, found.kind, value, found.transcript, golds)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published benchmark, asked as a whole; there are no gold boxes."""

    run: RunDir
    config: BenchmarkRun
    engines: Engines | None

    @property
    def name(self) -> str:
        """The benchmark's."""
        return self.config.benchmark

    def measure(self, askings: Sequence[Asking]) -> dict[str, list[Group]]:
        """Every measurement on every row; one group each."""
        return {one.name: [self._group(one)] for one in askings}

    def _group(self, asking: Asking) -> Group:
        config = self.config.model_copy(
            update={
                "model_path": asking.model_path,
                "style": asking.style,
                "variant": asking.name,
                "look": self.config.look.model_copy(
                    update={"crop_source": asking.crop_source, "corruption": asking.corruption}
                ),
            }
        )
        run = RunDir.create(self.run.path / "measured" / self.name / asking.name, config)
        measure_benchmark(run, config, get_published(config.benchmark), lambda: self._open(config))
        scorer = get_scorer(config.benchmark)
        attempts = []
        for row in read_asked(run.path / "predictions.parquet"):
            value = None if row.score is None else float(row.score[scorer.headline] or 0.0)
            attempts.append(Attempt(row.id, self.name, value, row.transcript))
        return Group(ALL, tuple(attempts), is_similarity=scorer.is_similarity)

    def _open(self, config: BenchmarkRun) -> Engine:
        if self.engines is None:
            return open_engine(config, self.run)
        return self.engines.open(resolve_model_path(config.model_path))


def sources(run: RunDir, config: AnalysisRun, engines: Engines | None) -> list[Source]:
    """The sets that an analysis asks; ``engines`` is None when an endpoint answers."""
    if config.benchmarks:
        return [Benchmark(run, one, engines) for one in config.benchmarks]
    assert engines is not None, "the configuration refuses an endpoint for held-out questions"
    return [HeldOut(run, config, engines)]


def chosen_questions(config: AnalysisRun) -> tuple[list[Asked], Look]:
    """``num_questions`` questions of each set, chosen by their ids, and the rules of asking them; of a
    benchmark, those with a picture.
    """
    if config.questions_path:
        questions = in_fixed_order(read_questions(Path(config.questions_path)))[: config.num_questions]
        return [Asked.of(question, config.look) for question in questions], config.look
    look = rules(config.benchmarks[0])
    return [
        asked for one in config.benchmarks for asked in _chosen_rows(one, config.num_questions, look)
    ], look


def _chosen_rows(config: BenchmarkRun, num_questions: int, look: Look) -> Iterator[Asked]:
    published = get_published(config.benchmark)
    local = read_set(published, Path(config.data_path), config.split, allow_partial=config.allow_partial)
    ids = sorted(
        (each.id for each in local.questions() if each.pictures), key=lambda id: derive_seed(0, id, 0)
    )
    wanted = set(ids[:num_questions])
    for each in local.questions():
        if each.id in wanted:
            prompt = each.prompt(config.style)
            images = [each.image(number) for number in prompt.numbers]
            yield Asked.about(
                f"{config.benchmark}/{each.id}", prompt.text, images, look, places=prompt.places
            )


def measure_full(source: Source, model_path: str) -> list[Group]:
    """The groups of a model as it is."""
    return source.measure([Asking.of(FULL, model_path)])[FULL.name]
