"""Several processes that ask a teacher at an endpoint; each has its part of the connections.

Orders go out as fast as there is room, results come back as they are made. What a worker holds is lost with
it, and asked again at the next start; a worker whose parent is gone ends itself.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from models.errors import EngineError
from models.run_config import VLIRRun
from models.usage import Usage
from models.vlir.askers import Attempt, OnLoaded, Order
from models.vlir.entries import Loading
from models.vlir.sources.base import Fault
from models.vlir.worker import NAMES, Report, Setup, work

_MAX_WORKERS = 8
# Fewer do not keep a process busy.
_MIN_CONNECTIONS = 16
# Orders that wait at the workers for a free place, all together: enough for the time in which a shard is
# written, and their pictures are files of some megabytes at most.
_NUM_AHEAD = 64
_ORDERS_TOGETHER = 16
_WAIT_SECONDS = 0.05
_END_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    room: int
    tickets: set[int] = field(default_factory=set)
    usages: Mapping[str, Usage] = field(default_factory=dict)
    has_ended: bool = False


class Workers:
    """An :class:`models.vlir.askers.Asker` of several processes."""

    def __init__(self, request: VLIRRun, loading: Loading) -> None:
        """Start them; a teacher that cannot be opened shows when it is asked."""
        requests = split_connections(request, num_workers(request))
        self._num_samples = request.vlir.num_samples
        self._workers = [_start(Setup(each, loading), _NUM_AHEAD // len(requests)) for each in requests]

    @property
    def max_in_flight(self) -> int:
        """In all workers, with what waits there."""
        return sum(worker.room for worker in self._workers)

    @property
    def metered(self) -> Mapping[str, object]:
        """Sums over the workers."""
        return {name: _Sum(self._workers, name) for name in NAMES}

    def answer(self, orders: Iterator[Order | None], on_loaded: OnLoaded) -> Iterator[tuple[int, Attempt]]:
        """As :class:`models.vlir.askers.Asker` says."""
        is_exhausted = False
        while True:
            is_exhausted = is_exhausted or self._hand_out(orders)
            if is_exhausted and not any(worker.tickets for worker in self._workers):
                break
            for report in self._reports():
                for ticket, found in report.loaded:
                    on_loaded(ticket, found)
                yield from report.attempts
                report.check()
        for worker in self._workers:
            _send(worker, None)
        while not all(worker.has_ended for worker in self._workers):
            for report in self._reports():
                report.check()

    def close(self) -> None:
        """End the workers; they drop what they were doing."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            worker.process.kill()
            worker.process.join()

    def _hand_out(self, orders: Iterator[Order | None]) -> bool:
        """Give every worker what it has room for, a few orders at a time; True when there are no more."""
        while True:
            worker = min(self._workers, key=lambda worker: len(worker.tickets) - worker.room)
            room = worker.room - len(worker.tickets)
            if room <= 0:
                return False
            batch: list[Order] = []
            order: Order | None = None
            ended = False
            while len(batch) < min(room, _ORDERS_TOGETHER):
                try:
                    order = next(orders)
                except StopIteration:
                    ended = True
                    break
                if order is None:
                    break
                batch.append(order)
            if batch:
                worker.tickets.update(order.ticket for order in batch)
                _send(worker, batch)
            if ended or order is None:
                return ended

    def _reports(self) -> list[Report]:
        """What has come in; waits a moment when nothing has. Raises EngineError when a worker is lost."""
        by_connection = {worker.connection: worker for worker in self._workers if not worker.has_ended}
        reports = []
        for connection in wait(list(by_connection), _WAIT_SECONDS):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            report = _receive(worker)
            worker.usages = report.usages
            worker.has_ended = report.has_ended
            worker.tickets -= {ticket for ticket, found in report.loaded if isinstance(found, Fault)}
            worker.tickets -= {ticket for ticket, tried in report.attempts if self._is_last(tried)}
            reports.append(report)
        return reports

    def _is_last(self, tried: Attempt) -> bool:
        return not tried.reason or tried.number + 1 >= self._num_samples


@dataclass(frozen=True, slots=True)
class _Sum:
    """What all workers have asked one endpoint for."""

    workers: Sequence[_Worker]
    name: str

    @property
    def usage(self) -> Usage:
        """Since they were started."""
        return sum((worker.usages.get(self.name, Usage()) for worker in self.workers), Usage())


def split_connections(request: VLIRRun, number: int) -> list[VLIRRun]:
    """The request of each of so many workers: connections are shared out, everything else is the same."""
    engine = request.vlir.teacher.engine
    assert engine is not None, "a teacher at an endpoint"
    requests = []
    for index in range(number):
        changes: dict[str, Any] = {
            "teacher": request.vlir.teacher.model_copy(
                update={
                    "engine": engine.model_copy(
                        update={"max_num_seqs": _part(engine.max_num_seqs, index, number)}
                    )
                }
            )
        }
        for name in ("semantic_unit", "coherence"):
            judge = getattr(request.vlir, name)
            connections = _part(judge.num_connections, index, number)
            changes[name] = judge.model_copy(update={"num_connections": connections})
        requests.append(request.model_copy(update={"vlir": request.vlir.model_copy(update=changes)}))
    return requests


def num_workers(request: VLIRRun) -> int:
    """One for each core, as far as they have something to do and every endpoint has a connection for each."""
    config = request.vlir
    assert config.teacher.engine is not None, "a teacher at an endpoint"
    judges = [judge for judge in (config.semantic_unit, config.coherence) if judge.kind == "http"]
    most = min(
        len(os.sched_getaffinity(0)),
        config.teacher.engine.max_num_seqs // _MIN_CONNECTIONS,
        *(judge.num_connections for judge in judges),
        _MAX_WORKERS,
    )
    return max(1, most)


def _part(total: int, index: int, number: int) -> int:
    """The part of one of several, who get as equal parts as there are; at least 1."""
    return max(1, total // number + (index < total % number))


def _start(setup: Setup, num_ahead: int) -> _Worker:
    # Spawned: a fork would share threads and connections.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), name="vlir-worker")
    process.start()
    theirs.close()
    engine = setup.request.vlir.teacher.engine
    assert engine is not None, "a teacher at an endpoint"
    worker = _Worker(process, ours, room=engine.max_num_seqs * 5 // 4 + num_ahead)
    _send(worker, setup)
    return worker


def _send(worker: _Worker, message: object) -> None:
    try:
        worker.connection.send(message)
    except OSError:
        raise _lost(worker) from None


def _receive(worker: _Worker) -> Report:
    try:
        report: Report = worker.connection.recv()
    except (EOFError, OSError):
        raise _lost(worker) from None
    return report


def _lost(worker: _Worker) -> EngineError:
    worker.process.join(_END_SECONDS)
    code = worker.process.exitcode
    return EngineError(
        f"A process that asks the teacher has ended (exit code {code}), see the log above; "
        "-9 means that the machine ran out of memory. What was answered is kept: run the stage again."
    )
