"""An engine of rollouts in a process of its own: questions and weights come in, whole trajectories go out.

The look-again loop runs here, beside the engine, so that a step's requests reach it in the same order at the
same time whatever the trainer does meanwhile: that, and a seed per request, make its samples repeatable.

The process keeps nothing: its trainer kills it when it is done. When the trainer is gone, whatever the
reason, the pipe ends, and the process with it.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from models.child import configure_logging
from models.config import EngineConfig, Look
from models.engine import Engine
from models.errors import VLMR3Error
from models.records import Question
from models.rollout import rollout
from models.trajectory import Trajectory

# What a launcher told the trainer about its own group, which the engine is no part of.
_LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_LAUNCHER_PREFIX = "TORCHELASTIC_"


@dataclass(frozen=True, slots=True)
class Opening:
    """What an engine is started with. With ``shares_memory`` (on a CPU) the first thing that comes through
    the pipe is the descriptor of the weights."""

    model_path: Path
    engine: EngineConfig
    look: Look
    seed: int
    rank: int
    shares_memory: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A method of :class:`Worker` and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What a call returned."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a call could not be answered, or the engine not started."""

    reason: str


class Receiver(Engine, Protocol):
    """An engine whose weights come from another process, in calls as vLLM's weight transfer has them."""

    version: int
    salt: str

    def receive(self, call: str, arguments: dict[str, Any]) -> None:
        """One of the calls."""

    def begin_version(self, version: int) -> None:
        """Forget what older weights made."""


class Worker:
    """What the trainer may ask for."""

    def __init__(self, engine: Receiver) -> None:
        self._engine = engine

    def roll_out(self, *, questions: Sequence[Question], salt: str, **how: Any) -> list[Trajectory]:
        """As :func:`models.rollout.rollout`; requests share caches with those of the same ``salt``."""
        self._engine.salt = salt
        try:
            return rollout(self._engine, questions, **how)
        finally:
            self._engine.salt = ""

    def receive(self, *, call: str, arguments: dict[str, Any]) -> None:
        """A call of the weight transfer."""
        self._engine.receive(call, arguments)

    def begin_version(self, *, version: int) -> None:
        """Sample with the received weights from now on."""
        self._engine.begin_version(version)


@contextmanager
def environment_of_engine(device: int | None) -> Iterator[None]:
    """While a process is started: it sees the one GPU ``device`` (None: as this one) and no launcher.

    ``device`` counts as torch does here, among the GPUs that this process sees.
    """
    before = dict(os.environ)
    for name in before:
        if name in _LAUNCHER or name.startswith(_LAUNCHER_PREFIX):
            del os.environ[name]
    if device is not None:
        seen = before.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[device] if seen else str(device)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(pipe: Connection, opening: Opening) -> None:
    """The process: answers one call after the other until it is killed, or its trainer gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to a group they are the trainer's, which says when
    configure_logging(opening.rank)
    descriptor = recv_handle(pipe) if opening.shares_memory else None
    calls: SimpleQueue[Call] = SimpleQueue()
    Thread(target=_read, args=(pipe, calls), name="from-trainer", daemon=True).start()
    try:
        engine = _open(opening, descriptor)
    except VLMR3Error as error:
        pipe.send(Failed(f"{type(error).__name__}: {error}"))
        return
    pipe.send(Done())
    worker = Worker(engine)
    while True:
        pipe.send(_answer(worker, calls.get()))


def _answer(worker: Worker, call: Call) -> Done | Failed:
    try:
        return Done(getattr(worker, call.method)(**call.arguments))
    except VLMR3Error as error:
        return Failed(f"{type(error).__name__}: {error}")


def _read(pipe: Connection, calls: "SimpleQueue[Call]") -> None:
    """Every call. A trainer that is gone wants no more answers: the process ends in mid-work."""
    while True:
        try:
            calls.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)


def _open(opening: Opening, descriptor: int | None) -> Receiver:
    """The engine that the configuration names; the heavy imports happen here. ``descriptor``: see Opening."""
    if opening.engine.kind == "transformers":
        from models.policy import load_policy
        from models.transformers_engine import FollowingEngine

        assert descriptor is not None, "the reference engine takes its weights from memory"
        policy = load_policy(opening.model_path, dtype=opening.engine.dtype)
        return FollowingEngine(policy, opening.engine, descriptor)
    from models.vllm_engine import VLLMEngine
    from models.weight_transfer import NCCL, SHARED_MEMORY

    engine = VLLMEngine(
        opening.model_path,
        opening.engine,
        look=opening.look,
        seed=opening.seed,
        transfer=NCCL if descriptor is None else SHARED_MEMORY,
    )
    if descriptor is not None:
        engine.receive("init_weight_transfer_engine", {"init_info": {"descriptor": descriptor}})
    return engine
