"""Several nodes of one job, and the launch of ranks that they share.

While a stage has ranks, the first node keeps ``WORK_DIR/nodes/JOB/launch.json``; all nodes share the work
directory. The others (:mod:`tasks.node`) start their part of the ranks, and PyTorch's rendezvous on the first
node joins them. All give each other signs of life meanwhile (:mod:`tasks.heartbeats`).
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from models import locks
from models.errors import ConfigError, LaunchError
from models.rundir import write_atomically
from tasks.heartbeats import LEAST_SILENCE_SECONDS, Heart, Watch
from tasks.settings import NODE_SILENCE, NODES, Settings

_FORM = re.compile(r"([1-9][0-9]*)@([A-Za-z0-9.-]+):([0-9]+)")
_LAUNCH = "launch.json"
_ENDED = "ended"
_LOCK = "launch.lock"  # held while there is a launch; a launch that nobody holds is of one who was killed


@dataclass(frozen=True, slots=True)
class Launch:
    """Ranks of ``python -m module run`` over all nodes; ``num_threads`` 0 leaves threads to the libraries."""

    module: str
    run: str
    num_ranks: int
    num_threads: int
    began: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """How many nodes share a job, which of them this is, and where the first one's rendezvous is."""

    count: int
    index: int
    host: str
    port: int
    folder: Path
    silence_seconds: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Nodes":
        """The nodes that the environment names, one when it names none. Raises ConfigError."""
        found = _FORM.fullmatch(settings.nodes or "1@localhost:0")
        if found is None:
            raise ConfigError(f"{NODES} is {settings.nodes!r}. It must be COUNT@HOST:PORT of the first node.")
        count, index = int(found[1]), settings.node_index
        if index >= count:
            raise ConfigError(f"This is node {index} of {count} ({NODES}); they are counted from 0.")
        silence = settings.node_silence
        if 0 < silence < LEAST_SILENCE_SECONDS:
            raise ConfigError(
                f"{NODE_SILENCE} is {silence}. It must be at least {LEAST_SILENCE_SECONDS} s, or 0: never."
            )
        return cls(count, index, found[2], int(found[3]), settings.work_dir / "nodes" / settings.job, silence)

    def heart(self) -> Heart:
        """What shows the other nodes that this one lives."""
        return Heart(self.folder, self.index)

    def watch(self, num_ranks: int) -> Watch:
        """What tells when one of the other nodes that share ``num_ranks`` ranks is lost.

        All matter to the first one, which runs the command; the others only follow the first. Whoever shares
        nothing is remembered all the same: it may be gone when there is something to share.
        """
        others = range(1, self.count) if self.index == 0 else [0]
        watch = Watch(self.folder, others, seconds=self.silence_seconds)
        return watch if num_ranks > 1 else Watch(self.folder, [], seconds=0)

    def launcher(self, num_ranks: int) -> list[str]:
        """Arguments of Python that start this node's part of the ranks.

        Raises ConfigError when the nodes cannot share them evenly.
        """
        if self.count == 1:
            return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        if num_ranks % self.count:
            raise ConfigError(f"{num_ranks} ranks on {self.count} nodes: their number must be a multiple.")
        return [
            *("-m", "torch.distributed.run", "--nnodes", str(self.count), "--node-rank", str(self.index)),
            *("--nproc-per-node", str(num_ranks // self.count)),
            *("--master-addr", self.host, "--master-port", str(self.port)),
        ]

    @contextmanager
    def shared(self, launch: Launch) -> Iterator[None]:
        """Have the other nodes start their part for the time of a block; does nothing on one node.

        Raises LaunchError when ranks of another stage are running: there is one rendezvous.
        """
        if self.count == 1 or launch.num_ranks == 1:
            yield
            return
        path = self.folder / _LAUNCH
        lock = locks.take(self.folder / _LOCK)
        if lock is None:
            raise LaunchError(f"Ranks of another stage hold the nodes ({path}). Give each its own job.")
        with lock:
            write_atomically(path, json.dumps(asdict(launch)))
            try:
                yield
            finally:
                path.unlink()

    def read_launch(self) -> Launch | None:
        """What runs on all nodes now."""
        try:
            return Launch(**json.loads((self.folder / _LAUNCH).read_text()))
        except FileNotFoundError:
            return None

    def begin(self) -> None:
        """Forget what an earlier try of this job, which may have been killed, has told the other nodes."""
        (self.folder / _ENDED).unlink(missing_ok=True)
        if lock := locks.take(self.folder / _LOCK):
            with lock:
                (self.folder / _LAUNCH).unlink(missing_ok=True)

    def end(self) -> None:
        """Tell the other nodes that the first one has ended."""
        write_atomically(self.folder / _ENDED, "")

    def have_ended(self) -> bool:
        """Whether the first node has ended."""
        return (self.folder / _ENDED).exists()
