"""Rejection sampling without a pause (paper 3.1.1): ask the teacher, judge, ask again where it failed.

The teacher is any engine, and goes through the look-again loop of :mod:`models.rollout`, so that a crop in a
record is the crop a model would have been given. Nobody waits for anybody: a trajectory that asked for a crop
is on its way again at once, a rejected question is asked again at once, and new questions take the place of
finished ones. Judges work in a thread of their own on whatever is waiting for them.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any

from models.config import Look
from models.engine import Engine
from models.protocol import BOX_STOP, extract_answer
from models.records import Question, RationaleStep, VLIRRecord
from models.region import Size, View
from models.rollout import Episode, Loop, derive_seed
from models.trajectory import CropSpan, Trajectory
from models.vlir.entries import Ready
from models.vlir.filters import Candidate, Judges, screen
from models.vlir.judges import Nobody

# Asked when the judges have nothing new: how long the teacher is left alone.
_POLL_SECONDS = 0.05
_MAX_JUDGED_TOGETHER = 512


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who writes the rationales. ``temperature`` gives that of a try, counted from 0."""

    engine: Engine
    name: str
    max_in_flight: int
    temperature: Callable[[int], float] = lambda attempt: 1.0


@dataclass(frozen=True, slots=True)
class Task:
    """A question to ask: the number of its next try, the seed of its shard, and where it belongs."""

    ready: Ready
    attempt: int
    seed: int
    place: Any


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished try: its record, accepted when it has no reason, and what it cost."""

    task: Task
    record: VLIRRecord
    judge_counts: Counter[str]
    prompt_tokens: int
    sampled_tokens: int


def generate(
    teacher: Teacher,
    tasks: Iterator[Task | None],
    *,
    look: Look,
    judges: Judges,
    num_samples: int,
) -> Iterator[Tried]:
    """Tries as they finish. A None among the tasks means: there are more, but not before something is done.

    ``look`` holds the teacher's limits, which may be wider than the student's. Raises EngineError or
    ScoringError when the teacher's engine or a judge fails as a whole.
    """
    generation = _Generation(teacher, tasks, look, judges, num_samples)
    try:
        yield from generation.run()
    finally:
        generation.close()


def to_record(
    question: Question, trajectory: Trajectory, *, look: Look, teacher: str, prompt_id: str
) -> VLIRRecord:
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
        teacher=teacher,
        prompt_id=prompt_id,
    )


class _Generation:
    def __init__(
        self,
        teacher: Teacher,
        tasks: Iterator[Task | None],
        look: Look,
        judges: Judges,
        num_samples: int,
    ) -> None:
        self._teacher, self._tasks, self._look = teacher, tasks, look
        self._num_samples = num_samples
        self._loop = Loop(teacher.engine)
        self._asked: dict[str, Task] = {}
        self._again: deque[Task] = deque()
        self._judging = _Judging(look, judges)
        self._is_exhausted = False

    def run(self) -> Iterator[Tried]:
        while True:
            self._fill()
            if not self._loop.live and not self._judging.num_waiting:
                if self._is_exhausted and not self._again:
                    return
                continue
            if self._loop.live:
                for episode in self._loop.step():
                    if episode.stop is not None:
                        self._finish(episode)
            for tried in self._judging.take(wait=not self._loop.live):
                if tried.record.reason and tried.task.attempt + 1 < self._num_samples:
                    task = tried.task
                    self._again.append(Task(task.ready, task.attempt + 1, task.seed, task.place))
                yield tried

    def close(self) -> None:
        """Leave no request running and no thread waiting."""
        for episode_id in tuple(self._loop.live):
            self._loop.abort(episode_id)
        self._judging.close()

    def _fill(self) -> None:
        # A slow judge must not let memory grow; a quick one must not take places away from the teacher.
        limit = self._teacher.max_in_flight
        while len(self._loop.live) < limit and self._judging.num_waiting < limit:
            task = self._again.popleft() if self._again else self._next_task()
            if task is None:
                return
            self._start(task)

    def _next_task(self) -> Task | None:
        if self._is_exhausted:
            return None
        try:
            return next(self._tasks)
        except StopIteration:
            self._is_exhausted = True
            return None

    def _start(self, task: Task) -> None:
        episode = Episode(
            task.ready.asked,
            0,
            look=self._look,
            temperature=self._teacher.temperature(task.attempt),
            seed=derive_seed(task.seed, "try", task.attempt),
        )
        self._asked[episode.id] = task
        self._loop.start(episode)

    def _finish(self, episode: Episode) -> None:
        task = self._asked.pop(episode.id)
        trajectory = episode.trajectory()
        record = to_record(
            task.ready.question,
            trajectory,
            look=self._look,
            teacher=self._teacher.name,
            prompt_id=task.ready.prompt_id,
        )
        candidate = Candidate(record, trajectory, task.ready.operations)
        self._judging.put(_Waiting(task, candidate))


@dataclass(frozen=True, slots=True)
class _Waiting:
    task: Task
    candidate: Candidate


class _Judging:
    """All filters in a thread of their own: judges at an endpoint take as long as the teacher.

    One batch is judged at a time, of everything that came meanwhile. Where nobody judges there is nothing to
    wait for, and no thread: handing Python's lock to and fro costs more than the rules.
    """

    def __init__(self, look: Look, judges: Judges) -> None:
        self._look, self._judges = look, judges
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judging")
        self._waits_for_judges = not (
            isinstance(judges.semantic_unit, Nobody) and isinstance(judges.coherence, Nobody)
        )
        self._waiting: deque[_Waiting] = deque()
        self._running: Future[list[Tried]] | None = None
        self.num_waiting = 0

    def put(self, waiting: _Waiting) -> None:
        """Have one more judged."""
        self.num_waiting += 1
        self._waiting.append(waiting)
        self._go_on()

    def take(self, *, wait: bool) -> list[Tried]:
        """What is judged by now; waits a moment for it when asked to. Raises what a judge raised."""
        if not self._waits_for_judges:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self.num_waiting = 0
            return self._judge(batch)
        if self._running is None:
            return []
        if wait:
            wait_for([self._running], timeout=_POLL_SECONDS)
        if not self._running.done():
            return []
        found = self._running.result()
        self._running = None
        self.num_waiting -= len(found)
        self._go_on()
        return found

    def close(self) -> None:
        """Let nobody wait for what is judged now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _go_on(self) -> None:
        if self._waits_for_judges and self._running is None and self._waiting:
            number = min(len(self._waiting), _MAX_JUDGED_TOGETHER)
            batch = [self._waiting.popleft() for _ in range(number)]
            self._running = self._pool.submit(self._judge, batch)

    def _judge(self, batch: list[_Waiting]) -> list[Tried]:
        screening = screen([each.candidate for each in batch], look=self._look, judges=self._judges)
        return [
            Tried(
                each.task,
                record,
                counts,
                each.candidate.trajectory.num_prompt_tokens,
                each.candidate.trajectory.num_sampled_tokens,
            )
            for each, record, counts in zip(batch, screening.records, screening.judge_counts, strict=True)
        ]
