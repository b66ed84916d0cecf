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
from tasks.heartbeats import Heart
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
    heart = nodes.heart()
    try:
        while process.poll() is None:
            heart.beat()
            time.sleep(_POLL_SECONDS)
        return process.returncode
    finally:
        launch.stop(process, grace_seconds=_GRACE_SECONDS)
        nodes.end()


def _follow(nodes: Nodes) -> None:
    heart = nodes.heart()
    if nodes.have_ended():
        print(f"{nodes.folder} has ended before. Its first node may start again in {_LATE_SECONDS:g} s.")
        until = time.monotonic() + _LATE_SECONDS
        while nodes.have_ended() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    lost: Launch | None = None  # that of a first node which is no more; another may follow
    while not nodes.have_ended():
        heart.beat()
        found = nodes.read_launch()
        if found is not None and found != lost and not _take_part(nodes, found, heart):
            lost = found
            print(
                f"The first node gives no sign of life. The ranks here were ended; waiting ({nodes.folder})."
            )
        time.sleep(_POLL_SECONDS)


def _take_part(nodes: Nodes, found: Launch, heart: Heart) -> bool:
    """Run this node's ranks until the first node's have ended. False when the first node was lost."""
    environment = child_environment(num_threads=found.num_threads, bin_folder=launch.BIN)
    command = [sys.executable, *nodes.launcher(found.num_ranks), "-m", found.module, found.run]
    with (Path(found.run) / f"log-node-{nodes.index}.txt").open("ab") as output:
        process = launch.start(command, output=output, environment=environment)
    watch = nodes.watch(found.num_ranks)
    try:
        while nodes.read_launch() == found and not nodes.have_ended():
            heart.beat()
            if watch.lost() is not None:
                return False
            time.sleep(_POLL_SECONDS)
        return True
    finally:
        launch.stop(process)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
