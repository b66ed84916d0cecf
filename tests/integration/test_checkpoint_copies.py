"""Copies of checkpoints in a real S3 server, made beside the training and fetched on another machine."""

import asyncio
import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from models.config import SFTConfig
from models.errors import ChildLostError
from models.records import write_records
from models.run_config import SFTRun
from models.rundir import Result, RunDir
from tasks.checkpoint_copies import CheckpointCopies
from tasks.retention import outdated, remove
from tasks.settings import prepare
from tasks.stage import StageOutput, stage_run
from tests.s3_proxy import Fault, Proxy
from tests.s3_server import BUCKET, S3Server
from tests.tiny_models import save_random_model
from tests.training_data import records, sft_run

pytestmark = pytest.mark.integration


@pytest.fixture
def root(s3_proxy: Proxy, tmp_path: Path) -> str:
    """A prefix of this test alone, reached through the proxy."""
    return f"s3://{BUCKET}/copies/{tmp_path.name}"


def run_of(folder: Path) -> RunDir:
    """The directory of the same run on some machine."""
    run = RunDir(folder / "sft-0123456789ab")
    run.path.mkdir(parents=True)
    return run


def save(run: RunDir, step: int) -> None:
    with run.checkpoint(step) as folder:
        (folder / "progress.json").write_text(f"step {step}")
        (folder / "state-00000.safetensors").write_bytes(bytes([step]) * 100_000)
    run.keep_checkpoints(2)


def keys(s3: S3Server, root: str) -> list[str]:
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    found = s3.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [each["Key"].removeprefix(f"{prefix}/checkpoints/sft-0123456789ab/") for each in found]


def steps(s3: S3Server, root: str) -> list[str]:
    return sorted({key.partition("/")[0] for key in keys(s3, root)})


def wait_for(copies: CheckpointCopies, count: int) -> None:
    deadline = time.monotonic() + 300
    while copies.num_made < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_goes_on_from_the_newest_copy_on_another_machine(
    s3: S3Server, root: str, tmp_path: Path
) -> None:
    here, there = run_of(tmp_path / "here"), run_of(tmp_path / "there")
    copies = CheckpointCopies(root, here, keep=2)
    copies.restore()  # there is nothing yet
    copies.start()
    for count, step in enumerate((5, 10, 15), start=1):
        save(here, step)
        wait_for(copies, count)
    assert steps(s3, root) == ["step-10", "step-15"]
    save(here, 20)
    copies.stop()  # waits for the last one
    assert (copies.num_made, copies.num_failed) == (4, 0)
    assert steps(s3, root) == ["step-15", "step-20"]
    assert not (here.path / "copied").exists()

    elsewhere = CheckpointCopies(root, there, keep=2)
    elsewhere.restore()
    assert [path.name for path in there.checkpoints()] == ["step-20"]
    for path in here.checkpoints()[-1].iterdir():
        assert (there.checkpoints()[0] / path.name).read_bytes() == path.read_bytes()
    save(there, 25)
    elsewhere.restore()  # what is here is newer
    assert [path.name for path in there.checkpoints()] == ["step-20", "step-25"]
    elsewhere.remove()
    assert keys(s3, root) == []


def test_copies_of_a_run_that_nobody_finishes_go_with_old_artifacts(
    s3: S3Server,
    root: str,
    s3_proxy: Proxy,
    work_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLM_R3_ARTIFACTS", root)
    settings = prepare(work_dir)
    run = run_of(tmp_path / "here")
    save(run, 1)
    copies = CheckpointCopies(root, run, keep=2)
    copies.start()
    wait_for(copies, 1)
    copies.stop()
    s3.client().put_object(Bucket=BUCKET, Key=f"copies/{tmp_path.name}/checkpoints/notes.txt", Body=b"x")
    month, now = timedelta(days=30), datetime.now(UTC)
    assert outdated(settings, older_than=month, now=now) == []
    (found,) = outdated(settings, older_than=month, now=now + 2 * month)
    assert found.uri == f"{root}/checkpoints/sft-0123456789ab"
    assert found.size > 100_000
    s3_proxy.reset()
    remove([found], settings)
    removed = [call.key.rpartition("/")[2] for call in s3_proxy.made("DELETE")]
    assert sorted(removed) == ["artifact.json", "progress.json", "state-00000.safetensors"]
    assert removed[0] == "artifact.json"
    assert keys(s3, root) == [f"copies/{tmp_path.name}/checkpoints/notes.txt"]


def test_a_damaged_copy_is_passed_over(s3: S3Server, root: str, tmp_path: Path) -> None:
    here, there = run_of(tmp_path / "here"), run_of(tmp_path / "there")
    copies = CheckpointCopies(root, here, keep=2)
    copies.start()
    for count, step in enumerate((9, 10), start=1):
        save(here, step)
        wait_for(copies, count)
    copies.stop()
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    key = f"{prefix}/checkpoints/{here.path.name}/step-10/state-00000.safetensors"
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=bytes(100_000))
    CheckpointCopies(root, there, keep=2).restore()
    assert [path.name for path in there.checkpoints()] == ["step-9"]
    # What went on from the older one keeps no copy that nobody can use instead of its own.
    save(there, 7)
    again = CheckpointCopies(root, there, keep=1)
    again.start()
    again.stop()
    assert steps(s3, root) == ["step-9"]


def test_what_else_lies_there_is_left_alone(s3: S3Server, root: str, tmp_path: Path) -> None:
    here, there = run_of(tmp_path / "here"), run_of(tmp_path / "there")
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    key = f"{prefix}/checkpoints/{here.path.name}/notes/artifact.json"
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    copies = CheckpointCopies(root, here, keep=1)
    copies.start()
    for count, step in enumerate((3, 4), start=1):
        save(here, step)
        wait_for(copies, count)
    copies.stop()
    assert (copies.num_made, copies.num_failed) == (2, 0)
    assert steps(s3, root) == ["notes", "step-4"]
    CheckpointCopies(root, there, keep=1).restore()
    assert [path.name for path in there.checkpoints()] == ["step-4"]


def test_a_copy_without_its_manifest_is_none(s3: S3Server, root: str, tmp_path: Path) -> None:
    here, there = run_of(tmp_path / "here"), run_of(tmp_path / "there")
    copies = CheckpointCopies(root, here, keep=2)
    copies.start()
    save(here, 3)
    copies.stop()
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    s3.client().delete_object(
        Bucket=BUCKET, Key=f"{prefix}/checkpoints/{here.path.name}/step-3/artifact.json"
    )
    CheckpointCopies(root, there, keep=2).restore()
    assert there.checkpoints() == []


def test_a_store_that_fails_stops_nothing_and_is_asked_again(
    s3: S3Server, s3_proxy: Proxy, root: str, tmp_path: Path
) -> None:
    here = run_of(tmp_path / "here")
    copies = CheckpointCopies(root, here, keep=2)
    s3_proxy.reset(lambda call: Fault(status=403) if call.method == "PUT" else None)
    copies.start()
    save(here, 1)
    deadline = time.monotonic() + 300
    while not copies.num_failed:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    save(here, 2)
    s3_proxy.reset()
    copies.stop()
    assert copies.num_made == 1
    assert steps(s3, root) == ["step-2"]


async def fine_tune(config: SFTRun) -> tuple[RunDir, Result, StageOutput]:
    """The stage as its task runs it."""
    async with stage_run("sft", params={}) as stage:
        run, result = await stage.child(
            "models.sft.train",
            config,
            inputs=(),
            num_threads=1,
            named_by=config.anywhere(),
            keep_checkpoints=1,
        )
        return run, result, stage.output(run, result, {"model": stage.publish(run, ["model"], kind="model")})


async def lose(config: SFTRun, runs: Path) -> None:
    """The same, whose trainer is killed in the midst."""
    training = asyncio.create_task(fine_tune(config))
    while not any(max((line["step"] for line in run.metrics()), default=0) >= 7 for run in started(runs)):
        assert not training.done()
        await asyncio.sleep(0.05)
    (run,) = started(runs)
    supervisor = psutil.Process(json.loads((run.path / "process.json").read_text())["pid"])
    for process in supervisor.children(recursive=True):
        process.kill()
    await training


def started(runs: Path) -> list[RunDir]:
    return [RunDir(path) for path in runs.glob("sft-*")]


def test_a_stage_that_lost_its_machine_goes_on_on_another_one(
    s3: S3Server, root: str, work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_R3_ARTIFACTS", root)
    write_records(tmp_path / "records.parquet", records(4))
    config = sft_run(
        save_random_model(tmp_path / "model", tied=True),
        tmp_path / "records.parquet",
        SFTConfig(num_epochs=80, batch_size=4, precision="float32", checkpoint_every=5, num_threads=1),
    )
    with pytest.raises(ChildLostError):
        asyncio.run(lose(config, work_dir / "runs"))
    (lost,) = started(work_dir / "runs")
    kept = [path.name for path in lost.checkpoints()]
    shutil.rmtree(work_dir / "runs")

    moved = tmp_path / "moved.parquet"
    (tmp_path / "records.parquet").rename(moved)
    elsewhere = config.model_copy(
        update={
            "records_path": str(moved),
            "sft": config.sft.model_copy(update={"checkpoint_every": 100}),
        }
    )
    run, result, output = asyncio.run(fine_tune(elsewhere))
    log = (run.path / "log.txt").read_text()
    assert any(f"resumed from {run.path}/checkpoints/{name}" in log for name in kept)
    assert run.path.name == lost.path.name
    assert result.status == "done"
    assert output.artifacts["model"].uri.startswith(root)
    assert [line["step"] for line in run.metrics() if line["step"] < 5] == [0, 1, 2, 3, 4]
    prefix = root.removeprefix(f"s3://{BUCKET}/")
    assert "Contents" not in s3.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/checkpoints/")
