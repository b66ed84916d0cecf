"""A training stage in processes of its own, to be killed at a chosen moment, and what its run came to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from models.rundir import RunDir

ROOT = Path(__file__).parents[1]
_TIMEOUT_SECONDS = 400.0
_END_SECONDS = 10.0
_LOOK_SECONDS = 0.002  # shorter than anything that is waited for, and no load on the stage's core


class Stage:
    """``python -m module RUN_DIR`` on one rank, or under torchrun on several."""

    def __init__(self, module: str, run: RunDir, *, num_ranks: int) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        command = [sys.executable, *(launcher if num_ranks > 1 else []), "-m", module, str(run.path)]
        self.run = run
        self._log = (run.path / "log.txt").open("ab")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        code = self.process.wait(_TIMEOUT_SECONDS)
        assert code == 0, (self.run.path / "log.txt").read_text()[-4000:]
        assert self.run.result().status == "done"

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Look every few milliseconds. Fails when the stage ends before."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not happened():
            assert self.process.poll() is None, "the stage ended before what was waited for"
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(_LOOK_SECONDS)

    def kill_when(self, is_so: Callable[[], bool]) -> None:
        """SIGKILL to every process of the stage while ``is_so`` holds: stopped first, and looked at again."""
        while True:
            self.wait_until(is_so)
            for process in self._all():
                process.send_signal(signal.SIGSTOP)
            if is_so():
                break
            for process in self._all():
                process.send_signal(signal.SIGCONT)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the stage."""
        for process in self._all():
            process.kill()
        self.process.wait()

    def kill_launcher(self) -> None:
        """SIGKILL to torchrun alone, which its ranks must not outlive."""
        ranks = self._all()[1:]
        self.process.kill()
        self.process.wait()
        _, left = psutil.wait_procs(ranks, timeout=_END_SECONDS)
        for rank in left:
            rank.kill()
        assert not left, "ranks have outlived torchrun"

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        self._log.close()

    def _all(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]


@contextmanager
def stage(module: str, run: RunDir, *, num_ranks: int) -> Iterator[Stage]:
    """A stage that runs for the time of a block."""
    started = Stage(module, run, num_ranks=num_ranks)
    try:
        yield started
    finally:
        started.close()


def last_step(run: RunDir) -> int:
    """The last step whose metrics are there, -1 before the first."""
    return max((line["step"] for line in run.metrics()), default=-1)


def is_saving(run: RunDir) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((run.path / "checkpoints").glob("*.partial/*"))


def metrics_of(run: RunDir) -> dict[int, dict[str, float]]:
    """What was said last of every step, but for the time that it took."""
    steps: dict[int, dict[str, float]] = {}
    for line in run.metrics():
        said = {name: value for name, value in line.items() if name != "time" and "time/" not in name}
        steps.setdefault(line["step"], {}).update(said)
    return steps


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rollouts_of(run: RunDir) -> list[dict[str, Any]]:
    """Every row of every step's rollouts: ids, log-probs, boxes, rewards, advantages."""
    paths = sorted((run.path / "rollouts").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
