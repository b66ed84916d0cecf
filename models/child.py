"""The frame of a stage's child process: ``python -m models.<stage>... RUN_DIR``.

It opens the run directory, runs the stage, and always leaves a ``result.json`` when the outcome is known:
done, failed for a reason of ours, or cancelled by SIGTERM or Ctrl-C. Any other exception is a bug: it leaves
a traceback in the log and no ``result.json``, which counts as failed.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from models.errors import ConfigError, VLMR3Error
from models.rundir import Result, RunDir

CANCELLED_EXIT_CODE = 143

_Config = TypeVar("_Config", bound=BaseModel)


class Cancelled(BaseException):
    """Somebody asked this process to stop. Not an Exception, so that no handler of errors swallows it."""


def run_child(
    argv: Sequence[str],
    stage: Callable[[RunDir], Result],
    *,
    writes_result: Callable[[], bool] = lambda: True,
) -> int:
    """Run ``stage`` on the run directory named by the one argument, and return the exit code of the process.

    ``writes_result`` is asked at the end: of several ranks only the first writes ``result.json``.
    """
    if len(argv) != 2:
        print(f"usage: python -m {Path(argv[0]).stem} RUN_DIR", file=sys.stderr)
        return ConfigError.exit_code
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _cancel)
    started = time.monotonic()
    try:
        run = RunDir.open(Path(argv[1]))
    except VLMR3Error as error:
        print(error, file=sys.stderr)
        return ConfigError.exit_code
    result, code = _outcome(stage, run)
    if writes_result():
        run.finish(result.model_copy(update={"seconds": round(time.monotonic() - started, 3)}))
    return code


def read_config(run: RunDir, kind: type[_Config]) -> _Config:
    """The configuration in a run directory. Raises ConfigError when it is not one of that kind."""
    try:
        return kind.model_validate_json(run.config_text())
    except ValidationError as error:
        raise ConfigError(f"{run.path / 'config.json'} is not a valid {kind.__name__}: {error}") from error


def _outcome(stage: Callable[[RunDir], Result], run: RunDir) -> tuple[Result, int]:
    try:
        return stage(run), 0
    except (Cancelled, KeyboardInterrupt):
        return Result(status="cancelled", reason="The process was asked to stop."), CANCELLED_EXIT_CODE
    except VLMR3Error as error:
        print(error, file=sys.stderr)
        return Result(status="failed", reason=str(error)), error.exit_code


def _cancel(signum: int, frame: FrameType | None) -> None:
    raise Cancelled
