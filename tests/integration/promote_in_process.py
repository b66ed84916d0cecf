"""Promote a version in a process of its own: VERSION [--meet FOLDER | --die-at CALL].

With ``--meet`` it waits, once judged, until two processes have judged on the same history. With ``--die-at``
it kills itself (SIGKILL) instead of that call of an MLflow client, the first or, with ``:2``, the second.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tasks.settings import prepare

prepare()

from mlflow import MlflowClient  # noqa: E402

from tasks.journal import FileJournal  # noqa: E402
from tasks.registry import promote_version, version_named  # noqa: E402
from tests.evidence_examples import POLICY  # noqa: E402


def meet(folder: Path) -> None:
    """Let the first write to the history wait for the other process."""
    create = FileJournal.create

    def waiting(self: FileJournal, number: int, text: str) -> bool:
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < deadline, "the other process never came"
            time.sleep(0.01)
        return create(self, number, text)

    FileJournal.create = waiting  # type: ignore[method-assign]


def die_at(call: str) -> None:
    """End without a word where a write to MLflow would follow."""
    name, _, which = call.partition(":")
    left = [int(which or 1)]
    real = getattr(MlflowClient, name)

    def dying(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **named)

    setattr(MlflowClient, name, dying)


parser = argparse.ArgumentParser()
parser.add_argument("version")
parser.add_argument("--meet", type=Path)
parser.add_argument("--die-at")
options = parser.parse_args()
if options.meet:
    meet(options.meet)
if options.die_at:
    die_at(options.die_at)
verdict = asyncio.run(promote_version.fn(version_named(options.version), POLICY))
sys.exit(0 if verdict.is_champion else 3)
