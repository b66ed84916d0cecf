"""A disk that is full while a checkpoint is written: nothing that was written before is lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import checkpoints, distributed
from models.checkpoints import Progress
from models.config import SFTConfig
from models.distributed import DeepSpeedEngine
from models.errors import TrainingError
from models.policy import load_policy
from models.rundir import RunDir
from models.sft.step import sft_step
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, records

pytestmark = pytest.mark.integration

CONFIG = SFTConfig(num_epochs=1, precision="float32")


@pytest.fixture(
    scope="module", params=[("float32", 0), ("float32", 2), ("bfloat16", 0), ("bfloat16", 3)], ids=str
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DeepSpeedEngine:
    precision, stage = request.param
    config = CONFIG.model_copy(update={"precision": precision, "zero_stage": stage})
    distributed.start(num_threads=1)
    policy = load_policy(save_random_model(tmp_path_factory.mktemp("model"), tied=False))
    made = distributed.initialise(policy, config)
    encoded = [policy.encoder.encode_record(record, LOOK) for record in records(2)]
    sft_step(made, encoded, ["a", "b"], learning_rate=0.1, max_tokens=1024)  # Adam's moments are there
    return made


@pytest.fixture
def run(tmp_path: Path, engine: DeepSpeedEngine) -> RunDir:
    """A run that has saved once."""
    made = RunDir.create(tmp_path / "run", CONFIG)
    checkpoints.save(made, engine, Progress(1))
    return made


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writing fails in its midst, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)])
    if done.returncode:
        pytest.skip("this container may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_checkpoint_that_cannot_be_written_to_its_end_leaves_the_one_before(
    run: RunDir, engine: DeepSpeedEngine
) -> None:
    before = contents(run.path)
    with files_at_most(100_000), pytest.raises(TrainingError) as caught:
        checkpoints.save(run, engine, Progress(2))
    said = str(caught.value)
    assert f"{run.path}/checkpoints/step-2 could not be written" in said
    assert "MB are free there. Make room and start again" in said
    assert "(step-1 is whole)" in said
    assert contents(run.path) == before  # the part is gone, and with it the room that it took
    assert checkpoints.resume(run, engine) == Progress(1)
    checkpoints.save(run, engine, Progress(2))
    assert checkpoints.resume(run, engine) == Progress(2)


def test_a_model_that_cannot_be_written_leaves_the_last_checkpoint(
    run: RunDir, engine: DeepSpeedEngine
) -> None:
    before = contents(run.path)
    with files_at_most(100_000), pytest.raises(TrainingError, match=r"run/model could not be .*\(step-1 is"):
        checkpoints.save_model(run, engine)
    assert contents(run.path) == before


def test_a_checkpoint_for_which_there_is_no_room_is_not_begun(
    run: RunDir, engine: DeepSpeedEngine, small_disk: Path
) -> None:
    takes = size(run.path / "checkpoints" / "step-1")
    place = shutil.copytree(run.path, small_disk / "run")
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - takes // 2))
    before = contents(place)
    with pytest.raises(TrainingError, match=r"\(it was not begun\)\. It takes at least (\S+) MB") as caught:
        checkpoints.save(RunDir(place), engine, Progress(2))
    need = float(str(caught.value).partition("at least ")[2].split()[0]) * 1e6
    assert 0.6 * takes < need < takes + 50_000  # never refused where there is room
    assert contents(place) == before
    (small_disk / "other").unlink()
    checkpoints.save(RunDir(place), engine, Progress(2))


def test_a_disk_that_is_filled_by_others_meanwhile(
    run: RunDir, engine: DeepSpeedEngine, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(run.path, small_disk / "run")
    monkeypatch.setattr(checkpoints, "_size", lambda *_, **__: 0)  # what is free is taken after the look
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(TrainingError, match="step-2 could not be written"):
        checkpoints.save(RunDir(place), engine, Progress(2))
    assert checkpoints.resume(RunDir(place), engine) == Progress(1)
    assert not list((place / "checkpoints").glob("*.partial"))
