"""This process among the ranks that share a measurement, as their launcher announced it.

    torchrun --standalone --nproc-per-node N -m models.evaluation.benchmark RUN_DIR

Without a launcher a process is alone. It reads and writes the environment: call it before an engine starts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ConfigError
from models.records import Question

_LAUNCH = "TORCHELASTIC_RUN_ID"
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work is this process's: every ``num_ranks``-th question, from ``rank`` on."""

    rank: int = 0
    num_ranks: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that merges and writes results."""
        return self.rank == 0

    def has(self, place: int) -> bool:
        """True for the place, from 0, of a question of this share."""
        return place % self.num_ranks == self.rank

    def of(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions of this share."""
        return questions[self.rank :: self.num_ranks]


ALONE = Share()


def this_share() -> Share:
    """The share of this process."""
    return Share(rank=int(os.environ.get("RANK", "0")), num_ranks=int(os.environ.get("WORLD_SIZE", "1")))


def this_launch() -> str:
    """What tells the ranks of this start from those of an earlier one; empty for a process that is alone.

    Raises ConfigError when several ranks were started without such a name.
    """
    if this_share().num_ranks == 1:
        return ""
    name = os.environ.get(_LAUNCH, "")
    if name in ("", "none"):
        raise ConfigError(
            f"{_LAUNCH} is {name!r}, so the ranks of this start cannot be told from those of another. Start "
            "them by torchrun --standalone."
        )
    return name


def num_threads() -> int:
    """The CPU threads that the launcher gives this process; 0 when it does not say."""
    return int(os.environ.get("OMP_NUM_THREADS") or "0")


def take_device() -> None:
    """Make the GPU of this rank the only one that it sees; on a machine without a GPU nothing changes.

    Raises ConfigError when there are fewer GPUs than ranks on this machine: two would share one.
    """
    import torch

    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_devices = torch.cuda.device_count()
    if num_ranks == 1 or num_devices == 0:
        return
    if num_devices < num_ranks:
        raise ConfigError(
            f"{num_ranks} ranks share this machine's {num_devices} visible GPUs; every rank needs one of its "
            f"own. Lower evaluation.num_ranks, or show more of them ({_DEVICES})."
        )
    visible = os.environ.get(_DEVICES, "")
    names = visible.split(",") if visible else [str(number) for number in range(num_devices)]
    os.environ[_DEVICES] = names[int(os.environ.get("LOCAL_RANK", "0"))].strip()
