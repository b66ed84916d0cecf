"""Checkpoints of a training run: all that it needs to go on as if nothing had happened, whole or not at all.

``checkpoints/step-N/`` holds

* ``progress.json``: the optimiser steps taken, of which the learning rate's schedule is a function, with the
  seconds where it follows the clock; the position in the order of all samples, which no number of ranks
  changes; the version of the weights that the engine of rollouts has, which it is given again; and the names
  of all other files, so that one that was lost is missed;
* ``state-NUMBER.safetensors``: master weights and AdamW's state, whole, by parameter name
  (:mod:`models.training_state`), in files of about a GiB that the ranks share out among them;
* ``rng-RANK.json``: every rank's random generators (Python, NumPy, torch, CUDA);
* ``metrics.jsonl``, ``preflight.json``: the metrics so far and what R-GRPO was begun upon, for a run that
  goes on in another directory;
* what the stage has more to keep (``beside``): R-GRPO, rollouts that are sampled and not yet trained on; SFT
  that stops early, the best check's model (``best-NAME``, the same files on the disk, linked).

Nothing in it depends on the number of ranks or the stage of ZeRO: it loads on others, whose generators then
go on as they began. Nothing is pickled: loading one runs no code.

A disk that is full costs nothing that was written before: what does not fit is not begun, what could not be
written to its end is removed, and the error says what is missing.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models import distributed, randomness, training_state
from models.check import PREFLIGHT
from models.distributed import DeepSpeedEngine
from models.errors import RunDirError, TrainingError
from models.policy import save_policy
from models.rundir import CHECKPOINTS, NO_ROOM, RunDir, flush, write_atomically

log = logging.getLogger(__name__)

_METRICS, _PROGRESS = "metrics.jsonl", "progress.json"
_FILES = "files"  # in progress.json: the names of all others
_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    Optimiser steps and seconds of training, samples (records or questions) taken from the order of all ranks,
    and the version of the weights that rollouts are sampled from.
    """

    step: int = 0
    seconds: float = 0.0
    num_samples: int = 0
    weight_version: int = 0


def save(
    run: RunDir,
    engine: DeepSpeedEngine,
    progress: Progress,
    *,
    keep: int = 2,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write ``checkpoints/step-N``; all ranks call it. Only the newest ``keep`` stay.

    ``beside`` writes into the folder, too, on every rank.

    Raises TrainingError when there is no room; the checkpoints before are then as they were.
    """
    is_main = distributed.is_main()
    partial = folder_of(run, progress.step).with_suffix(".partial")
    need = _size(engine, with_optimizer=True)
    with (
        _room(run, partial, need=need),
        run.checkpoint(progress.step) if is_main else nullcontext(partial) as folder,
    ):
        distributed.barrier()  # the folder exists
        for name in (_METRICS, PREFLIGHT):
            if is_main and (run.path / name).exists():
                shutil.copyfile(run.path / name, folder / name)
        randomness.write(folder / f"rng-{distributed.rank()}.json")
        _write_state(folder, engine)
        if beside is not None:
            beside(folder)
        distributed.barrier()  # every rank has written its part
        if is_main:
            names = sorted(path.name for path in folder.iterdir())
            (folder / _PROGRESS).write_text(json.dumps({**asdict(progress), _FILES: names}))
    if is_main:
        run.keep_checkpoints(keep)


def resume(
    run: RunDir, engine: DeepSpeedEngine, *, at_most: int | None = None, keep: int | None = None
) -> Progress:
    """Load the latest checkpoint into the engine, if there is one; all ranks call it.

    With ``at_most`` the latest of those of at most so many steps. With ``keep`` only so many of the newest
    stay: the run may have been interrupted just when it removed others, and have no more to save. Raises
    RunDirError when it is damaged or not one of this model.
    """
    found = distributed.from_main(lambda: [each for each in run.checkpoints() if _is_at_most(each, at_most)])
    if not found:
        return Progress()
    folder = found[-1]
    with _whole(found):
        progress = _restored(folder, engine)
    # Not within: a run directory that takes no file is no fault of the checkpoint.
    if distributed.is_main():
        _restore_records(run, folder, progress.step)
    if distributed.is_main() and keep is not None:
        run.keep_checkpoints(keep)
    log.info("resumed from %s", folder)
    return progress


def _restore_records(run: RunDir, folder: Path, step: int) -> None:
    """Put into the run directory what it lacks of a checkpoint's records: it may be another one, or have lost
    its last lines with the machine's power."""
    if (folder / _METRICS).exists() and max((line["step"] for line in run.metrics()), default=-1) < step:
        write_atomically(run.metrics_path, (folder / _METRICS).read_text())
    if (folder / PREFLIGHT).exists() and not (run.path / PREFLIGHT).exists():
        write_atomically(run.path / PREFLIGHT, (folder / PREFLIGHT).read_text())


def _restored(folder: Path, engine: DeepSpeedEngine) -> Progress:
    kept = json.loads((folder / _PROGRESS).read_text())
    if lost := [name for name in kept.pop(_FILES, ()) if not (folder / name).exists()]:
        raise FileNotFoundError(f"without its {', '.join(lost)}")
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(path, framework="pt"))
            for path in folder.glob("state-*.safetensors")
        ]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (it is no mapping)

        def read(name: str) -> Tensor:
            if name not in places:
                raise RunDirError(
                    f"{folder} has no {name!r}: it is not a checkpoint of this model. Remove {folder.parent} "
                    "to begin again."
                )
            return places[name].get_tensor(name)

        training_state.restore_state(engine, read)
    randomness.restore(folder / f"rng-{distributed.rank()}.json")
    return Progress(**kept)


@contextmanager
def _whole(found: Sequence[Path]) -> Iterator[None]:
    """A block that reads the last of these checkpoints. Raises RunDirError, which says what is left, when a
    file of it is damaged: its name says that it was whole, so nothing is passed over in silence."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        folder, *before = reversed(found)
        if not folder.exists():
            raise RunDirError(
                f"{folder} was removed while it was read: a run that trains keeps its newest checkpoints "
                "only. Start again."
            ) from error
        rest = f"from {before[0].name}" if before else "from the beginning"
        raise RunDirError(
            f"{folder} is damaged ({type(error).__name__}: {error}). Remove it and start again: the run then "
            f"goes on {rest}."
        ) from error


def _is_at_most(folder: Path, step: int | None) -> bool:
    return step is None or step_of(folder) <= step


def _write_state(folder: Path, engine: DeepSpeedEngine) -> None:
    """All tensors, in files that the ranks write in turn."""
    number, size = 0, 0
    mine: dict[str, Tensor] = {}
    rank, num_ranks = distributed.rank(), distributed.num_ranks()
    for name, tensor in training_state.whole_state(engine):
        if size and size + tensor.nbytes > _FILE_BYTES:
            _write_file(folder, number, mine)
            number, size, mine = number + 1, 0, {}
        size += tensor.nbytes
        if number % num_ranks == rank:
            mine[name] = tensor.cpu().contiguous()
    _write_file(folder, number, mine)


def _write_file(folder: Path, number: int, tensors: dict[str, Tensor]) -> None:
    if tensors:
        save_file(tensors, folder / f"state-{number:05d}.safetensors")


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
            for path in (*partial.iterdir(), partial):
                flush(path)
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
    except (OSError, SafetensorError) as error:
        if not _is_about_room(error):
            raise
        free = _free(run)
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(_no_room(run, partial, need, free, str(error))) from error


def _is_about_room(error: OSError | SafetensorError) -> bool:
    """safetensors, which has no error numbers, fails to write for nothing else."""
    return isinstance(error, SafetensorError) or error.errno in NO_ROOM


def _no_room(run: RunDir, partial: Path, need: int, free: int, reason: str) -> str:
    found = run.checkpoints()
    kept = f"{found[-1].name} is whole" if found else "there is none before"
    return (
        f"{partial.with_suffix('')} could not be written ({reason}). It takes at least {need / 1e6:.1f} MB, "
        f"and {free / 1e6:.1f} MB are free there. Make room and start again: the run goes on from its last "
        f"checkpoint ({kept}). Or choose another disk by --work-dir."
    )


def _free(run: RunDir) -> int:
    return shutil.disk_usage(run.path).free


def _size(engine: DeepSpeedEngine, *, with_optimizer: bool) -> int:
    """Bytes of a model folder's weights, or of a checkpoint's: master weights and two moments, float32."""
    total = 0
    for parameter in engine.module.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 keeps a slice here
        total += count * (3 * 4 * parameter.requires_grad if with_optimizer else parameter.element_size())
    return total


def folder_of(run: RunDir, step: int) -> Path:
    """Where the checkpoint after so many steps is."""
    return run.path / CHECKPOINTS / f"step-{step}"


def step_of(folder: Path) -> int:
    """After how many steps a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))
