"""A checkpoint of two ranks loads on one and the other way round, at another stage of ZeRO; what is no number
stops a step.
"""

import errno
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoints, distributed
from models.check import PREFLIGHT
from models.checkpoints import Progress
from models.distributed import DeepSpeedEngine
from models.errors import RunDirError
from models.rundir import RunDir, remove
from tests import bad_samples, state_of_ranks
from tests.bad_gradients import nan_in_gradient_of_row
from tests.tiny_models import save_random_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    distributed.start(num_threads=1)
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> tuple[Path, dict[str, float]]:
    """Checkpoints of this process alone, and the loss of each one's next step."""
    folder = tmp_path_factory.mktemp("of_one")
    return folder, state_of_ranks.make(model_path, folder)


@pytest.fixture(scope="module")
def of_two(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, of_one: tuple[Path, dict[str, float]]
) -> Path:
    """Checkpoints of two ranks, which first went on from those of one."""
    folder = tmp_path_factory.mktemp("of_two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(ROOT / "tests" / "state_of_ranks.py")]
    subprocess.run([*command, str(model_path), str(of_one[0]), str(folder)], check=True, timeout=500)
    return folder


def close(expected: dict[str, float]) -> dict[str, object]:
    """Sums over ranks are taken in another order; bfloat16 rounds what differs."""
    return {
        name: pytest.approx(loss, rel=0.02 if name.startswith("bfloat16") else 1e-5)
        for name, loss in expected.items()
    }


def test_a_checkpoint_of_one_rank_goes_on_with_two(
    of_one: tuple[Path, dict[str, float]], of_two: Path
) -> None:
    found = json.loads((of_two / "losses.json").read_text())["theirs"]
    assert found == close(of_one[1])


def test_a_checkpoint_of_two_ranks_goes_on_with_one(model_path: Path, of_two: Path) -> None:
    expected = json.loads((of_two / "losses.json").read_text())["ours"]
    assert state_of_ranks.go_on(model_path, of_two) == close(expected)
    assert len(set(expected.values())) > 1


def test_it_is_the_same_to_the_bit(model_path: Path, of_two: Path, tmp_path: Path) -> None:
    for precision, saved, loads in state_of_ranks.CASES:
        engine = state_of_ranks.engine_of(model_path, precision, loads)
        theirs = RunDir(of_two / f"{precision}-{saved}")
        progress = checkpoints.resume(theirs, engine)
        ours = RunDir(tmp_path / f"{precision}-{saved}")
        ours.path.mkdir()
        checkpoints.save(ours, engine, progress)
        (before,), (after,) = (sorted(run.checkpoints()[-1].glob("*.safetensors")) for run in (theirs, ours))
        assert before.read_bytes() == after.read_bytes()


def test_gradients_that_are_no_numbers_stop_every_rank_and_name_the_sample(of_two: Path) -> None:
    first, last = (json.loads((of_two / f"refusals-{rank}.json").read_text()) for rank in (0, 1))
    assert first == last
    assert len(first) == 8 + 4
    for zero_stage in range(4):
        # Of the last rank's records 1 and 3 the longer one comes first, and both are as long.
        assert "not finite for 1 samples: record-" in first[f"{zero_stage}-row"]
        assert "record-0, record-2, record-1, record-3" in first[f"{zero_stage}-weights"]
    of_rgrpo = [message for name, message in first.items() if name.startswith("rgrpo")]
    assert all(f"not finite for 1 samples: {bad_samples.BAD}." in message for message in of_rgrpo)


@pytest.mark.parametrize("zero_stage", range(4))
def test_a_gradient_that_is_no_number_changes_no_weight(model_path: Path, zero_stage: int) -> None:
    engine = state_of_ranks.engine_of(model_path, "float32", zero_stage)
    with distributed.gathered(engine):
        before = {name: tensor.clone() for name, tensor in engine.module.weights()}
    nan_in_gradient_of_row(engine.module)
    with pytest.raises(state_of_ranks.TrainingError, match="its gradient is not finite for 1 samples"):
        state_of_ranks.take_step(engine)
    with distributed.gathered(engine):
        assert all(torch.equal(tensor, before[name]) for name, tensor in engine.module.weights())


def test_random_generators_go_on_where_they_were(model_path: Path, tmp_path: Path) -> None:
    engine = state_of_ranks.engine_of(model_path, "float32", 2)
    run = RunDir(tmp_path)
    checkpoints.save(run, engine, Progress(1))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    expected = draw()
    assert draw() != expected
    checkpoints.resume(run, engine)
    assert draw() == expected


def test_a_checkpoint_of_another_model_is_refused(
    model_path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tied = save_random_model(tmp_path_factory.mktemp("tied"), tied=True)
    run = RunDir(tmp_path)
    checkpoints.save(run, state_of_ranks.engine_of(tied, "float32", 0), Progress(1))
    with pytest.raises(RunDirError, match=r"has no 'model.lm_head.weight': it is not a checkpoint of this"):
        checkpoints.resume(run, state_of_ranks.engine_of(model_path, "float32", 0))


def saved_twice(model_path: Path, folder: Path) -> tuple[RunDir, DeepSpeedEngine]:
    """A run with checkpoints of steps 1 and 2, and the engine that they were saved from."""
    run, engine = RunDir(folder), state_of_ranks.engine_of(model_path, "float32", 0)
    for step in (1, 2):
        checkpoints.save(run, engine, Progress(step))
    return run, engine


@pytest.mark.parametrize("name", ["state-00000.safetensors", "rng-0.json", "progress.json"])
def test_a_damaged_checkpoint_is_named_with_what_is_left(model_path: Path, tmp_path: Path, name: str) -> None:
    run, engine = saved_twice(model_path, tmp_path)
    newest = run.checkpoints()[-1]
    (newest / name).write_bytes((newest / name).read_bytes()[:10])  # the disk lost the rest
    with pytest.raises(RunDirError, match=r"step-2 is damaged .* goes on from step-1\."):
        checkpoints.resume(run, engine)
    remove(newest)
    assert checkpoints.resume(run, engine).step == 1


@pytest.mark.parametrize("name", ["state-00000.safetensors", "rng-0.json", "progress.json", ""])
def test_a_checkpoint_that_has_lost_a_file_is_damaged(model_path: Path, tmp_path: Path, name: str) -> None:
    """Without its state it is no other model's, and without generators it does not go on in silence."""
    run, engine = saved_twice(model_path, tmp_path)
    newest = run.checkpoints()[-1]
    for path in [newest / name] if name else list(newest.iterdir()):
        path.unlink()
    with pytest.raises(RunDirError, match=rf"step-2 is damaged .*{name}.* goes on from step-1\."):
        checkpoints.resume(run, engine)


def test_a_run_directory_that_takes_no_file_is_no_damage_of_its_checkpoint(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be told to remove a good checkpoint would be worse than the fault."""
    run, engine = saved_twice(model_path, tmp_path)
    (run.checkpoints()[-1] / "metrics.jsonl").write_text("")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.resume(run, engine)


@pytest.mark.parametrize("lines_left", [0, 1, 3])
def test_a_run_directory_gets_the_records_that_it_lacks(
    model_path: Path, tmp_path: Path, lines_left: int
) -> None:
    """All of them on another machine, the last ones where the power failed, none where there are more."""
    engine = state_of_ranks.engine_of(model_path, "float32", 2)
    here, there = RunDir(tmp_path / "here"), RunDir(tmp_path / "there")
    here.path.mkdir()
    (here.path / PREFLIGHT).write_text("looked at")
    for step in (1, 2):
        here.log(step, {"sft/loss": 1.0 / step})
    checkpoints.save(here, engine, Progress(2))
    shutil.copytree(here.path / "checkpoints", there.path / "checkpoints")
    for step in range(1, lines_left + 1):
        there.log(step, {"sft/loss": 5.0})
    checkpoints.resume(there, engine)
    found = [(line["step"], line["sft/loss"]) for line in there.metrics()]
    assert found == ([(step, 5.0) for step in (1, 2, 3)] if lines_left == 3 else [(1, 1.0), (2, 0.5)])
    assert (there.path / PREFLIGHT).read_text() == "looked at"


def test_a_folder_that_cannot_be_removed_yet_ends_no_run(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a file that somebody reads, and with it the folder."""
    run, engine = saved_twice(model_path, tmp_path)
    kept = run.path / "checkpoints" / "step-0.removed"
    kept.mkdir()
    rmtree = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if path == kept and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        if path != kept:
            rmtree(path, ignore_errors=ignore_errors)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        checkpoints.save(run, engine, Progress(3), keep=1)
    assert [path.name for path in run.checkpoints()] == ["step-3"]
    checkpoints.save(run, engine, Progress(4), keep=1)
    assert not kept.exists()


def test_a_checkpoint_that_goes_while_it_is_read_is_not_damaged(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a replay beside a run that trains: what is gone need not be removed."""
    run, engine = saved_twice(model_path, tmp_path)
    found = run.checkpoints()
    monkeypatch.setattr(run, "checkpoints", lambda: found)  # listed just before
    remove(found[-1])
    with pytest.raises(RunDirError, match=r"step-2 was removed while it was read.* Start again"):
        checkpoints.resume(run, engine)


def test_only_the_newest_checkpoints_are_kept(model_path: Path, tmp_path: Path) -> None:
    engine = state_of_ranks.engine_of(model_path, "float32", 2)
    run = RunDir(tmp_path)
    for step in range(1, 12):
        checkpoints.save(run, engine, Progress(step), keep=3)
    left = run.path / "checkpoints" / "step-8.removed"  # of a removal that was interrupted
    left.mkdir()
    (run.path / "checkpoints" / "step-10.partial").mkdir()  # and of one that was not written to its end
    assert [path.name for path in run.checkpoints()] == ["step-9", "step-10", "step-11"]
    checkpoints.save(run, engine, Progress(12), keep=1)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-12"]


def test_what_an_interrupted_removal_left_goes_when_the_run_goes_on(model_path: Path, tmp_path: Path) -> None:
    """A run that was killed after its last checkpoint saves no other."""
    run, engine = saved_twice(model_path, tmp_path)
    (run.path / "checkpoints" / "step-0.removed").mkdir()
    kept = {path.name for path in (run.path / "checkpoints").iterdir()}
    checkpoints.resume(run, engine, at_most=1)  # a replay removes nothing of a run
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == kept
    assert checkpoints.resume(run, engine, keep=1).step == 2
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-2"]
