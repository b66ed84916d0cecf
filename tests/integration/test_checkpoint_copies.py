"""Copies of checkpoints in a real S3 server, made beside the training and fetched on another machine."""

import time
from pathlib import Path

import pytest

from models.rundir import RunDir
from tasks.checkpoint_copies import CheckpointCopies
from tests.s3_proxy import Fault, Proxy
from tests.s3_server import BUCKET, S3Server

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
    deadline = time.monotonic() + 60
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
    deadline = time.monotonic() + 60
    while not copies.num_failed:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    save(here, 2)
    s3_proxy.reset()
    copies.stop()
    assert copies.num_made == 1
    assert steps(s3, root) == ["step-2"]
