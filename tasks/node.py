"""What every pod of a job runs: ``python -m tasks.node COMMAND...`` (infra/work_pools/gpu-k8s.json).

On one node the command, a flow run, simply replaces this process. On several the first node runs it, and the
others run their part of the ranks that its stages launch (:mod:`tasks.nodes`).
"""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tasks import launch
from tasks.nodes import Launch, Nodes
from tasks.settings import Settings, child_environment

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 100.0  # a pod has 120
# How long the first node may come after the others when a job is started again.
_LATE_SECONDS = 120.0


def main(command: Sequence[str]) -> int:
    """Run the command, or the ranks that this node is asked for. Returns the exit code."""
    nodes = Nodes.of(Settings.read())
    if nodes.count == 1:
        launch.become(command)
    signal.signal(signal.SIGTERM, _leave)
    if nodes.index:
        _follow(nodes)
        return 0
    nodes.begin()
    environment = child_environment(num_threads=0, bin_folder=launch.BIN)
    process = launch.start(command, output=None, environment=environment, grace_seconds=_GRACE_SECONDS)
    try:
        return process.wait()
    finally:
        launch.stop(process, grace_seconds=_GRACE_SECONDS)
        nodes.end()


def _follow(nodes: Nodes) -> None:
    if nodes.have_ended():
        print(f"{nodes.folder} has ended before. Its first node may start again in {_LATE_SECONDS:g} s.")
        until = time.monotonic() + _LATE_SECONDS
        while nodes.have_ended() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    while not nodes.have_ended():
        found = nodes.read_launch()
        if found is not None:
            _take_part(nodes, found)
        time.sleep(_POLL_SECONDS)


def _take_part(nodes: Nodes, found: Launch) -> None:
    """Run this node's ranks until the first node's have ended."""
    environment = child_environment(num_threads=found.num_threads, bin_folder=launch.BIN)
    command = [sys.executable, *nodes.launcher(found.num_ranks), "-m", found.module, found.run]
    with (Path(found.run) / f"log-node-{nodes.index}.txt").open("ab") as output:
        process = launch.start(command, output=output, environment=environment)
    try:
        while nodes.read_launch() == found and not nodes.have_ended():
            time.sleep(_POLL_SECONDS)
    finally:
        launch.stop(process)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
