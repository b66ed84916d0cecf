"""One thread that owns the engine and drives every request's episodes: the look-again loop of training.

Requests come in from any thread and join the running batch at its next step; what happens to them goes out
through the job's own function, which is called on this thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from models.engine import DraftingEngine, Engine, WaitingEngine
from models.errors import EngineError
from models.narration import Narrator, Told
from models.rollout import Episode, Loop
from models.serving.metrics import Metrics
from models.trajectory import Trajectory

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0  # an engine that dies with nothing to do is noticed within this time


@dataclass(frozen=True, slots=True)
class Ended:
    """An episode is over. ``num_given_tokens`` counts question, crops and messages, in tokens."""

    trajectory: Trajectory
    num_given_tokens: int


@dataclass(frozen=True, slots=True)
class Broke:
    """We failed; nothing more comes."""

    reason: str


News = Told | Ended | Broke


@dataclass(frozen=True, slots=True)
class Job:
    """One request: an episode per choice. ``tell`` gets what happened, each with the number of its choice."""

    id: str
    episodes: tuple[Episode, ...]
    tell: Callable[[Sequence[tuple[int, News]]], None]
    received: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Told:
    """An episode of a job: who tells it, and since when its turn is under way."""

    job: Job
    choice: int
    narrator: Narrator
    turn_began: float = 0.0


class Driver:
    """Drives the loop until it is closed or the engine fails.

    At most ``max_in_flight`` episodes are under way; others wait in the order they came. ``on_failure`` is
    called on the driver's thread when the engine has failed: every job is then told that it broke.
    """

    def __init__(
        self, engine: Engine, *, max_in_flight: int, metrics: Metrics, on_failure: Callable[[], None]
    ) -> None:
        self.failure = ""
        self._loop = Loop(engine)
        self._drafting_engine = engine if isinstance(engine, DraftingEngine) else None
        self._waiting_engine = engine if isinstance(engine, WaitingEngine) else None
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self._on_failure = on_failure
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting: deque[_Told] = deque()
        self._told: dict[str, _Told] = {}
        self._news: dict[str, tuple[Job, list[tuple[int, News]]]] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="look-again", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Begin a job; from any thread."""
        self._order(lambda: self._admit(job))

    def abort(self, job: Job) -> None:
        """Forget a job and free its place in the engine; from any thread, also for one that has ended."""
        self._order(lambda: self._forget(job))

    def close(self) -> None:
        """Stop; what is in flight is told that it broke. The engine stays open."""
        self._order(self._end)
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.put(order)
        if self._waiting_engine is not None:
            self._waiting_engine.wake()

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._take_orders()
                self._fill()
                self._step()
                self._tell_all()
        except EngineError as error:
            log.error("The engine failed: %s", error)
            self._fail(str(error))
        except BaseException as error:
            self._fail(f"{type(error).__name__} in the look-again loop")
            raise
        else:
            self._break_all("The server is shutting down.")

    def _take_orders(self) -> None:
        """Everything that was ordered; waits while there is nothing else to do, but looks after the engine
        now and then.
        """
        if not self._loop.live and not self._waiting:
            with suppress(Empty):
                self._orders.get(timeout=_IDLE_SECONDS)()
        while not self._orders.empty():
            self._orders.get()()

    def _admit(self, job: Job) -> None:
        for choice, episode in enumerate(job.episodes):
            self._waiting.append(_Told(job, choice, Narrator(episode)))

    def _fill(self) -> None:
        while self._waiting and len(self._loop.live) < self._max_in_flight:
            told = self._waiting.popleft()
            told.turn_began = time.monotonic()
            self._metrics.queue_seconds.observe(told.turn_began - told.job.received)
            self._told[told.narrator.episode.id] = told
            self._loop.start(told.narrator.episode)

    def _step(self) -> None:
        for episode in self._loop.step():
            self._advance(episode)
        if self._drafting_engine is not None:
            for draft in self._drafting_engine.drafts():
                if told := self._told.get(draft.request_id):
                    self._note(told, told.narrator.draft(draft.text))

    def _advance(self, episode: Episode) -> None:
        told = self._told[episode.id]
        now = time.monotonic()
        self._metrics.turn_seconds.observe(now - told.turn_began)
        told.turn_began = now
        try:
            for news in told.narrator.catch_up():
                self._note(told, news)
        except EngineError as error:
            log.error("%s", error)
            self._note(told, Broke(str(error)))
            self._forget(told.job)
            return
        if episode.stop is not None:
            del self._told[episode.id]
            self._note(told, Ended(episode.trajectory(), episode.num_given_tokens))

    def _note(self, told: _Told, news: News) -> None:
        self._news.setdefault(told.job.id, (told.job, []))[1].append((told.choice, news))

    def _tell_all(self) -> None:
        noted, self._news = self._news, {}
        for job, news in noted.values():
            job.tell(news)

    def _forget(self, job: Job) -> None:
        kept = deque(told for told in self._waiting if told.job.id != job.id)
        self._metrics.aborted.inc(len(self._waiting) - len(kept))
        self._waiting = kept
        for episode in job.episodes:
            if self._told.pop(episode.id, None) is not None:
                self._metrics.aborted.inc()
                self._loop.abort(episode.id)

    def _end(self) -> None:
        self._is_closing = True

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._on_failure()
        self._break_all(reason)

    def _break_all(self, reason: str) -> None:
        """Tell everybody, also who came in the last moment."""
        while not self._orders.empty():
            self._orders.get()()
        for told in (*self._waiting, *self._told.values()):
            self._note(told, Broke(reason))
        self._tell_all()
