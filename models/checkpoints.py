"""Checkpoints of a training run: weights, optimiser state and step, written whole or not at all.

Everything else a run needs to go on (which samples come next, which random numbers) is a function of the seed
and the step.
"""

import json
import logging
import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from models import distributed
from models.distributed import DeepSpeedEngine
from models.errors import RunDirError
from models.policy import save_policy
from models.rundir import RunDir

log = logging.getLogger(__name__)

_TAG = "state"
_NUM_KEPT = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: steps taken, and the seconds of training that they took."""

    step: int = 0
    seconds: float = 0.0


def save(run: RunDir, engine: DeepSpeedEngine, progress: Progress) -> None:
    """Write ``checkpoints/step-N``; all ranks call it. Older ones than the one before are removed."""
    is_main = distributed.is_main()
    partial = _folder(run, progress.step).with_suffix(".partial")
    with run.checkpoint(progress.step) if is_main else nullcontext(partial) as folder:
        distributed.barrier()  # the folder exists
        if is_main:
            about = {**asdict(progress), "num_ranks": dist.get_world_size()}
            (folder / "progress.json").write_text(json.dumps(about))
        engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        distributed.barrier()  # every rank has written its part
    if is_main:
        for step in _steps(run)[:-_NUM_KEPT]:
            shutil.rmtree(_folder(run, step))


def resume(run: RunDir, engine: DeepSpeedEngine) -> Progress:
    """Load the latest checkpoint into the engine, if there is one; all ranks call it.

    Raises RunDirError when the checkpoint was written by another number of ranks: optimiser state is cut in
    as many parts.
    """
    latest = distributed.from_main(lambda: max(_steps(run), default=None))
    if latest is None:
        return Progress()
    folder = _folder(run, latest)
    found = json.loads((folder / "progress.json").read_text())
    num_ranks = found.pop("num_ranks")
    if num_ranks != dist.get_world_size():
        raise RunDirError(
            f"{folder} was written by {num_ranks} ranks, this run has {dist.get_world_size()}. Resume with "
            f"num_ranks={num_ranks}, or remove {folder.parent} to begin again."
        )
    engine.load_checkpoint(str(folder), tag=_TAG)
    log.info("resumed from %s", folder)
    return Progress(**found)


def save_model(run: RunDir, engine: DeepSpeedEngine) -> None:
    """Write the policy as a model folder, ``model/``, whole or not at all; all ranks call it."""
    with distributed.gathered(engine):
        if distributed.is_main():
            target = run.path / "model"
            partial = target.with_suffix(".partial")
            for leftover in (partial, target):
                shutil.rmtree(leftover, ignore_errors=True)
            save_policy(engine.module, partial)
            partial.rename(target)


def _steps(run: RunDir) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    names = (path.name for path in (run.path / "checkpoints").glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name))


def _folder(run: RunDir, step: int) -> Path:
    return run.path / "checkpoints" / f"step-{step}"
