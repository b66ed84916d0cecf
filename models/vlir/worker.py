"""A process that asks a teacher at an endpoint, and what it and its parent tell each other.

Started by :class:`models.vlir.workers.Workers` with its end of a pipe. It answers the orders that come in,
reports what was done, and ends when it is told, or when the pipe closes.
"""

import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from models.child import configure_logging
from models.errors import VLMR3Error
from models.run_config import VLIRRun
from models.usage import Usage
from models.vlir.askers import Attempt, Loaded, Order, open_judges, task_of
from models.vlir.entries import Loading
from models.vlir.filters import Judges
from models.vlir.generate import Task, Teacher, generate
from models.vlir.sources.base import Fault
from models.vlir.spending import Metered
from models.vlir.teachers import open_teacher

NAMES = ("teacher", "semantic_unit", "coherence")
# While there is work, results go out together: a message costs both ends more than a result.
_SECONDS_BETWEEN_REPORTS = 0.02
_WAIT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told first."""

    request: VLIRRun
    loading: Loading


@dataclass(slots=True)
class Report:
    """What a worker has done since its last one. ``usages`` are totals, ``failure`` ends it."""

    loaded: list[tuple[int, Loaded | Fault]] = field(default_factory=list)
    attempts: list[tuple[int, Attempt]] = field(default_factory=list)
    usages: Mapping[str, Usage] = field(default_factory=dict)
    failure: tuple[type[VLMR3Error], str] | None = None
    has_ended: bool = False

    def check(self) -> None:
        """Raises what the worker failed with."""
        if self.failure is not None:
            kind, message = self.failure
            raise kind(message)


class _Worker:
    def __init__(self, connection: Connection, inbox: "SimpleQueue[bytes]", setup: Setup) -> None:
        self._connection, self._inbox = connection, inbox
        self._loading = setup.loading
        self._num_samples = setup.request.vlir.num_samples
        self._teacher: Teacher = open_teacher(setup.request, setup.loading.look, {})
        self._judges: Judges = open_judges(setup.request)
        self._waiting: deque[Order] = deque()
        self._num_asked = 0
        self._is_last = False
        self._report = Report()
        self._reported = 0.0

    def run(self) -> None:
        """Answer orders until there are no more, and say so; or why that failed."""
        try:
            self._answer()
        except VLMR3Error as error:
            self._report.failure = type(error), str(error)
        self._report.has_ended = True
        self._send(now=True)

    def _answer(self) -> None:
        tried = generate(
            self._teacher,
            self._tasks(),
            look=self._loading.look,
            judges=self._judges,
            num_samples=self._num_samples,
        )
        for each in tried:
            attempt = Attempt.of(each)
            self._num_asked -= not attempt.reason or attempt.number + 1 >= self._num_samples
            self._report.attempts.append((each.task.place, attempt))
            self._send()
        self._teacher.engine.close()
        self._judges.close()

    def _tasks(self) -> Iterator[Task | None]:
        """The orders' questions; None while there is no order, and something is being done."""
        while True:
            self._send(now=not self._num_asked)
            self._receive()
            if self._waiting:
                order = self._waiting.popleft()
                task = task_of(order, order.material.load(self._loading), self._on_loaded)
                if task is not None:
                    self._num_asked += 1
                    yield task
            elif self._is_last:
                return
            elif self._num_asked:
                yield None

    def _on_loaded(self, ticket: int, found: Loaded | Fault) -> None:
        self._report.loaded.append((ticket, found))

    def _receive(self) -> None:
        """Take in the orders that came; waits a moment when there is nothing else to do."""
        try:
            message = self._inbox.get(block=not (self._num_asked or self._waiting), timeout=_WAIT_SECONDS)
            while True:
                orders = pickle.loads(message)
                if orders is None:
                    self._is_last = True
                else:
                    self._waiting += orders
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _send(self, *, now: bool = False) -> None:
        """Report, unless that can wait."""
        moment = time.monotonic()
        if not now and moment - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        if not (self._report.loaded or self._report.attempts or self._report.has_ended):
            return
        self._report.usages = self._usages()
        self._connection.send(self._report)
        self._report, self._reported = Report(), moment

    def _usages(self) -> dict[str, Usage]:
        asked = (self._teacher.engine, self._judges.semantic_unit, self._judges.coherence)
        return {
            name: metered.usage
            for name, metered in zip(NAMES, asked, strict=True)
            if isinstance(metered, Metered)
        }


def _read(connection: Connection, inbox: "SimpleQueue[bytes]") -> None:
    """Take everything from the pipe at once: its other end must never wait for us while we wait for it."""
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        # The parent is gone, and with it everybody who wants an answer.
        os._exit(1)


def work(connection: Connection) -> None:
    """Answer what comes in at this end of a pipe, then end the process."""
    configure_logging(rank=0)
    # The parent decides when we end, and closes the pipe.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), name="orders", daemon=True).start()
    try:
        worker = _Worker(connection, inbox, pickle.loads(inbox.get()))
    except VLMR3Error as error:
        connection.send(Report(failure=(type(error), str(error)), has_ended=True))
    else:
        worker.run()
    sys.stdout.flush()
    # Connections of a client may still be closing; nobody waits for that.
    os._exit(0)
