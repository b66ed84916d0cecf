"""A stage as a child process: ``python -m models.<stage>.train RUN_DIR``, one process per rank.

The configuration is the run directory's ``config.json``; the outcome is its ``result.json``. A failure that
we foresaw, a guard that pauses the run and a cancellation (SIGTERM, Ctrl-C) leave a result that says so. Any
other exception leaves a traceback in the log and no result, which counts as a failure too.

One process at a time works in a run directory: the first rank holds its ``lock``. Ranks do not outlive
torchrun: killed alone, it would leave them at work while the same command is given again.
"""

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from models import locks
from models.errors import ConfigError, GateError, GuardError, RunDirError, VLMR3Error
from models.rundir import NO_ROOM, Result, RunDir

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=BaseModel)

EXIT_CANCELLED = 128 + signal.SIGTERM

_PR_SET_PDEATHSIG = 1
# A process that was killed holds its files until its memory has been given back.
_PATIENCE_SECONDS = 30.0


class _NotOursError(RunDirError):
    """The run directory, and so the result, is not ours to write: another process works there, or it cannot
    be written to."""


class Cancelled(BaseException):
    """Somebody asked this process to end. Not an Exception: nobody but :func:`run_stage` catches it."""


def run_stage(
    work: Callable[[RunDir, ConfigT], Result], config_type: type[ConfigT], arguments: Sequence[str]
) -> int:
    """Run ``work`` on the run directory named by the arguments and write its result; returns the exit code.

    Call it from ``if __name__ == "__main__"`` only: it configures logging and takes over SIGTERM and SIGINT.
    """
    if len(arguments) != 1:
        print("usage: python -m MODULE RUN_DIR", file=sys.stderr)
        return ConfigError.exit_code
    rank = int(os.environ.get("RANK", "0"))
    configure_logging(rank)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _cancel)
    if "TORCHELASTIC_RUN_ID" in os.environ and not _ends_with_torchrun():
        log.error("torchrun, which started this rank, is gone.")
        return VLMR3Error.exit_code
    started = time.monotonic()
    run = RunDir(Path(arguments[0]))
    lock: TextIO | None = None  # held until the result is written
    try:
        run = RunDir.open(run.path)
        if rank == 0:
            lock = _sole_use(run)
            run.forget_result()
        result = work(run, _config_of(run, config_type))
    except _NotOursError as error:
        log.error("%s", error)
        return error.exit_code
    except GuardError as error:
        log.warning("paused: %s", error)
        artifacts = {"checkpoint": error.checkpoint} if error.checkpoint else {}
        _finish(run, Result(status="paused", reason=str(error), artifacts=artifacts), started)
        return error.exit_code
    except GateError as error:
        log.error("refused: %s", error)
        _finish(run, Result(status="refused", reason=str(error)), started)
        return error.exit_code
    except VLMR3Error as error:
        log.error("%s: %s", type(error).__name__, error)
        _finish(run, Result(status="failed", reason=f"{type(error).__name__}: {error}"), started)
        return error.exit_code
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        reason = f"A disk is full ({error}). Make room and start again: what was kept before is whole."
        log.error("%s", reason)
        with suppress(OSError):  # it may be the disk of the result
            _finish(run, Result(status="failed", reason=reason), started)
        return VLMR3Error.exit_code
    except Cancelled:
        # When another rank failed, its launcher ends this one: the reason is then already written.
        if lock and not (run.path / "result.json").exists():
            _finish(run, Result(status="cancelled", reason="asked to end"), started)
        return EXIT_CANCELLED
    if rank == 0:
        _finish(run, result, started)
    return 0


def _ends_with_torchrun() -> bool:
    """From now on this process is killed when its parent ends; False when torchrun is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = os.getppid()
    try:  # torchrun is Python; what adopts orphans mostly is not
        return Path(f"/proc/{parent}/exe").readlink().name.startswith("python")
    except OSError:  # we may not look: it is not of our user, or guards its memory
        return parent != 1


def _sole_use(run: RunDir) -> TextIO:
    """The run directory for this process alone, until the file is closed."""
    path = run.path / "lock"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while (file := locks.take(path)) is None:
            if time.monotonic() > deadline:
                raise _NotOursError(
                    f"{run.path} is in use: {locks.holder(path)} works there. Wait until it has ended, or "
                    "end it, and start again."
                )
            time.sleep(0.1)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise _NotOursError(f"{run.path} cannot be written to: {error}.") from error
    return file


def _config_of(run: RunDir, config_type: type[ConfigT]) -> ConfigT:
    try:
        return config_type.model_validate_json(run.config_text())
    except ValidationError as error:
        raise ConfigError(f"{run.path / 'config.json'} is no {config_type.__name__}: {error}") from error


def _finish(run: RunDir, result: Result, started: float) -> None:
    if run.path.is_dir():
        run.finish(result.model_copy(update={"seconds": round(time.monotonic() - started, 3)}))


def configure_logging(rank: int) -> None:
    """Our own progress from every rank; from libraries only what needs attention."""
    logging.basicConfig(
        level=logging.WARNING, format=f"%(asctime)s [{rank}] %(name)s: %(message)s", stream=sys.stdout
    )
    for name, level in {"__main__": "INFO", "models": "INFO", "DeepSpeed": "WARNING"}.items():
        logging.getLogger(name).setLevel(level)


def _cancel(number: int, frame: FrameType | None) -> None:
    # A second signal must not interrupt the writing of the result.
    for handled in (signal.SIGTERM, signal.SIGINT):
        signal.signal(handled, signal.SIG_IGN)
    raise Cancelled
