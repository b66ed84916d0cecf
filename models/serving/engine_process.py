"""The engine in a process of its own: while it computes, this one reads requests and cuts crops.

Python lets one thread of a process run at a time, and vLLM's scheduler is Python; beside it in one process
every request's HTTP and pictures would cost the engine that much time.

A picture crosses the pipe once: both ends keep the same last pictures and name them by digest afterwards.
"""

import gc
import io
import logging
import os
import pickle
import signal
from collections import OrderedDict
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from models.config import EngineConfig, Look
from models.engine import DraftingEngine, Engine
from models.errors import EngineError, VLMR3Error
from models.region import Picture
from models.trajectory import CropSpan, Draft, GenerationRequest, Piece, SampledSpan

log = logging.getLogger(__name__)

# Pictures that both ends keep. More only means that a picture crosses again.
KEPT_BYTES = 512 * 2**20
_WAIT_SECONDS = 1.0
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """The engine is up."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """The engine is gone; ``reason`` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Step:
    """What one step gave."""

    pieces: list[Piece]
    drafts: list[Draft]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Close:
    """Nothing more is asked."""


class EngineProcess:
    """A :class:`models.engine.DraftingEngine` whose work is done by a child process.

    The child ends when it is closed and when this process dies, whatever the reason. Raises EngineError when
    the engine does not start, and from :meth:`step` when it is gone.
    """

    def __init__(self, model_path: Path, config: EngineConfig, *, look: Look) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, model_path, config, look), name="vlm-r3-engine"
        )
        self._process.start()
        theirs.close()
        self._pictures = KnownPictures()
        self._live: set[str] = set()
        self._drafts: list[Draft] = []
        self._arrived: SimpleQueue[_Step | _Failed | None] = SimpleQueue()
        # One thread, so that messages stay in order; the driver never waits for the child to read.
        self._sender = ThreadPoolExecutor(1, "to-engine")
        self._wait_until_ready()
        Thread(target=self._receive, name="from-engine", daemon=True).start()

    def submit(self, request: GenerationRequest) -> None:
        """Send a request; its id must not be in flight."""
        self._live.add(request.request_id)
        self._sender.submit(lambda: self._send(self._pictures.pack(request)))

    def step(self) -> list[Piece]:
        """What one step of the child gave; waits for it, though not for ever."""
        self._drafts = []
        try:
            message = self._arrived.get(timeout=_WAIT_SECONDS)
        except Empty:
            return []
        if message is None:
            return []
        if isinstance(message, _Failed):
            raise EngineError(message.reason)
        # A piece may have been under way when its request was aborted.
        pieces = [piece for piece in message.pieces if piece.request_id in self._live]
        self._live -= {piece.request_id for piece in pieces}
        self._drafts = [draft for draft in message.drafts if draft.request_id in self._live]
        return pieces

    def wake(self) -> None:
        """Let the step that waits return, or the next one; from any thread."""
        self._arrived.put(None)

    def drafts(self) -> list[Draft]:
        """The requests with ``shows_drafts`` whose text grew in the last step."""
        return self._drafts

    def abort(self, request_id: str) -> None:
        """Forget a request in flight; unknown ids are ignored."""
        if request_id in self._live:
            self._live.discard(request_id)
            self._sender.submit(lambda: self._send(pickle.dumps(_Abort(request_id))))

    def close(self) -> None:
        """End the child: politely, then not."""
        self._sender.submit(lambda: self._send(pickle.dumps(_Close())))
        self._sender.shutdown(wait=False)
        self._end(_CLOSE_SECONDS)

    def _end(self, patience_seconds: float) -> None:
        self._process.join(patience_seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _wait_until_ready(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            message = _Failed(self._obituary())
        except BaseException:  # interrupted while the model loads
            self._end(0.0)
            raise
        if isinstance(message, _Failed):
            self._end(_CLOSE_SECONDS)
            raise EngineError(message.reason)

    def _receive(self) -> None:
        """Everything the child sends, until it is gone."""
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                message = _Failed(self._obituary())
            self._arrived.put(message)
            if isinstance(message, _Failed):
                return

    def _send(self, data: bytes) -> None:
        try:
            self._pipe.send_bytes(data)
        except OSError:
            log.debug("The engine's process takes no more messages.")  # the receiver tells why

    def _obituary(self) -> str:
        self._process.join(_CLOSE_SECONDS)
        return f"The engine's process ended with exit code {self._process.exitcode}; its log says why."


class KnownPictures:
    """The last pictures that crossed the pipe, the same on both ends because both see the same requests."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._room = kept_bytes

    def pack(self, request: GenerationRequest) -> bytes:
        """A request for the other end; known pictures go as their digest."""
        buffer = io.BytesIO()
        _Pickler(buffer, self._kept).dump(request)
        self._keep(request)
        return buffer.getvalue()

    def unpack(self, data: bytes) -> Any:
        """What the other end has packed; other messages as they are."""
        message = _Unpickler(io.BytesIO(data), self._kept).load()
        if isinstance(message, GenerationRequest):
            self._keep(message)
        return message

    def _keep(self, request: GenerationRequest) -> None:
        for picture in _pictures(request):
            if picture.digest not in self._kept:
                self._room -= picture.size.area * 3
            self._kept[picture.digest] = picture
            self._kept.move_to_end(picture.digest)
        while self._room < 0:
            _, oldest = self._kept.popitem(last=False)
            self._room += oldest.size.area * 3


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, known: Container[str]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._known = known

    def persistent_id(self, obj: object) -> str | None:
        return obj.digest if isinstance(obj, Picture) and obj.digest in self._known else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, known: OrderedDict[str, Picture]) -> None:
        super().__init__(buffer)
        self._known = known

    def persistent_load(self, pid: str) -> Picture:
        return self._known[pid]


def _pictures(request: GenerationRequest) -> Iterable[Picture]:
    yield from request.prompt.shown()
    for span in request.spans:
        if isinstance(span, CropSpan):
            yield span.picture


def _run(pipe: Connection, model_path: Path, config: EngineConfig, look: Look) -> None:
    """The child: an engine that steps while it has requests, and a thread that reads the pipe meanwhile."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever started us says when: what is in flight ends first
    os.dup2(2, 1)  # what libraries print is no output of ours
    try:
        engine = _open(model_path, config, look)
        try:
            # What is here now stays: the collector need not look through all of vLLM while requests wait.
            gc.collect()
            gc.freeze()
            pipe.send(_Ready())
            _serve(pipe, engine)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other end is gone
        finally:
            engine.close()
    except VLMR3Error as error:
        pipe.send(_Failed(f"{type(error).__name__}: {error}"))


def _serve(pipe: Connection, engine: DraftingEngine) -> None:
    asked: SimpleQueue[GenerationRequest | _Abort | _Close] = SimpleQueue()
    Thread(target=_read, args=(pipe, asked), name="from-server", daemon=True).start()
    live: set[str] = set()
    while True:
        while not live or not asked.empty():
            message = asked.get()
            if isinstance(message, _Close):
                return
            if isinstance(message, _Abort):
                live.discard(message.request_id)
                engine.abort(message.request_id)
            elif refused := _submit(engine, message):
                pipe.send(_Step([refused], []))
            else:
                live.add(message.request_id)
        pieces = engine.step()
        live -= {piece.request_id for piece in pieces}
        drafts = engine.drafts()
        if pieces or drafts:
            pipe.send(_Step(pieces, drafts))


def _read(pipe: Connection, asked: "SimpleQueue[GenerationRequest | _Abort | _Close]") -> None:
    """Everything the other end sends, until it closes or is gone."""
    known = KnownPictures()
    while True:
        try:
            message = known.unpack(pipe.recv_bytes())
        except (EOFError, OSError):
            message = _Close()
        asked.put(message)
        if isinstance(message, _Close):
            return


def _submit(engine: Engine, request: GenerationRequest) -> Piece | None:
    """Hand a request in; a piece that says why when the engine refuses this one."""
    try:
        engine.submit(request)
    except EngineError as error:
        return Piece(request.request_id, SampledSpan(""), "error", str(error))
    return None


def _open(model_path: Path, config: EngineConfig, look: Look) -> DraftingEngine:
    """The engine that the configuration names; the heavy imports happen here, in the child."""
    if config.kind == "vllm":
        from models.vllm_engine import VLLMEngine

        return VLLMEngine(model_path, config, look=look)
    from models.policy import load_policy
    from models.transformers_engine import TransformersEngine

    return TransformersEngine(load_policy(model_path, dtype=config.dtype), config)
