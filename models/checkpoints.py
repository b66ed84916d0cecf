"""Checkpoints of a training run: weights, optimiser state and step, written whole or not at all.

Everything else a run needs to go on (which samples come next, which random numbers) is a function of the seed
and the step.

A disk that is full costs nothing that was written before: what does not fit is not begun, what could not be
written to its end is removed, and the error says what is missing.
"""

import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from models import distributed
from models.distributed import DeepSpeedEngine
from models.errors import RunDirError, TrainingError
from models.policy import save_policy
from models.rundir import RunDir

log = logging.getLogger(__name__)

_TAG = "state"
_NUM_KEPT = 2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How PyTorch says that a file ends before what it wrote: no error number comes with it.
_CUT_OFF = re.compile("inline_container|PytorchStreamWriter")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: steps taken, and the seconds of training that they took."""

    step: int = 0
    seconds: float = 0.0


def save(run: RunDir, engine: DeepSpeedEngine, progress: Progress) -> None:
    """Write ``checkpoints/step-N``; all ranks call it. Older ones than the one before are removed.

    Raises TrainingError when there is no room; the checkpoints before are then as they were.
    """
    is_main = distributed.is_main()
    partial = _folder(run, progress.step).with_suffix(".partial")
    need = _size(engine, with_optimizer=True)
    with (
        _room(run, partial, need=need),
        run.checkpoint(progress.step) if is_main else nullcontext(partial) as folder,
    ):
        distributed.barrier()  # the folder exists
        if is_main:
            about = {**asdict(progress), "num_ranks": dist.get_world_size()}
            (folder / "progress.json").write_text(json.dumps(about))
        engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
        distributed.barrier()  # every rank has written its part
    if is_main:
        for step in _steps(run)[:-_NUM_KEPT]:
            shutil.rmtree(_folder(run, step))


def latest(run: RunDir) -> Path | None:
    """The folder of the latest complete checkpoint; None where there is none."""
    steps = _steps(run)
    return _folder(run, steps[-1]) if steps else None


def resume(run: RunDir, engine: DeepSpeedEngine, *, at_most: int | None = None) -> Progress:
    """Load the latest checkpoint into the engine, if there is one; all ranks call it.

    With ``at_most`` the latest of those of at most so many steps.

    Raises RunDirError when the checkpoint was written by another number of ranks: optimiser state is cut in
    as many parts.
    """
    steps = distributed.from_main(lambda: _steps(run))
    latest = max((step for step in steps if at_most is None or step <= at_most), default=None)
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


def save_model(run: RunDir, engine: DeepSpeedEngine, *, name: str = "model") -> None:
    """Write the policy as a model folder ``name`` of the run, whole or not at all; all ranks call it.

    Raises TrainingError when there is no room.
    """
    target = run.path / name
    partial = target.with_suffix(".partial")
    need = _size(engine, with_optimizer=False)
    with distributed.gathered(engine), _room(run, partial, need=need):
        if distributed.is_main():
            for leftover in (partial, target):
                shutil.rmtree(leftover, ignore_errors=True)
            save_policy(engine.module, partial)
            partial.rename(target)


@contextmanager
def _room(run: RunDir, partial: Path, *, need: int) -> Iterator[None]:
    """A block that writes ``partial``, at least ``need`` bytes of it; all ranks enter it.

    Raises TrainingError on every rank when so much is not free, on a rank that cannot write when it cannot.
    """
    free = distributed.from_main(lambda: _free(run))
    if free < need:
        raise TrainingError(_no_room(run, partial, need, free, "it was not begun"))
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_room(error):
            raise
        free = _free(run)
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(_no_room(run, partial, need, free, str(error))) from error


def _is_about_room(error: Exception) -> bool:
    """Not, for example, that another rank has gone."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return isinstance(error, SafetensorError) or bool(_CUT_OFF.search(str(error)))


def _no_room(run: RunDir, partial: Path, need: int, free: int, reason: str) -> str:
    steps = _steps(run)
    kept = f"step-{steps[-1]} is whole" if steps else "there is none before"
    return (
        f"{partial.with_suffix('')} could not be written ({reason}). It takes at least {need / 1e6:.1f} MB, "
        f"and {free / 1e6:.1f} MB are free there. Make room and start again: the run goes on from its last "
        f"checkpoint ({kept}). Or choose another disk by --work-dir."
    )


def _free(run: RunDir) -> int:
    return shutil.disk_usage(run.path).free


def _size(engine: DeepSpeedEngine, *, with_optimizer: bool) -> int:
    """Bytes that the weights take, with Adam's two moments when the optimiser is written too.

    So much is written at every stage of ZeRO and in every precision; some write the weights in float32 too.
    """
    total = 0
    for parameter in engine.module.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 keeps a slice here
        moments = 2 * 4 if with_optimizer and parameter.requires_grad else 0
        total += count * (parameter.element_size() + moments)
    return total


def _steps(run: RunDir) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    names = (path.name for path in (run.path / "checkpoints").glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d+", name))


def _folder(run: RunDir, step: int) -> Path:
    return run.path / "checkpoints" / f"step-{step}"
