"""Artifacts in a real S3 server: what comes back is what was stored, whatever happens on the way."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import main
from models.errors import ArtifactError, StoreError
from tasks.artifacts import MANIFEST, ArtifactRef, Manifest, open_store
from tasks.s3_store import S3Store
from tests.s3_proxy import Call, Fault, Proxy
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.integration

PART = 5 << 20  # the smallest that a store takes
BIG = os.urandom(3 * PART + 7)  # four parts
FILES = {"model/weights.bin": BIG, "note.txt": b"hello", "empty": b""}
PUBLISH = (sys.executable, "-m", "tests.integration.publish_folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "made")


@pytest.fixture
def root(s3_proxy: Proxy, tmp_path: Path) -> str:
    """A prefix of this test alone, reached through the proxy."""
    return f"s3://{BUCKET}/store/{tmp_path.name}"


def made(folder: Path, **changed: bytes) -> Path:
    for name, data in {**FILES, **changed}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def store(root: str, cache: Path) -> S3Store:
    return S3Store(root, cache, part_size=PART)


def publish(root: str, folder: Path, cache: Path) -> ArtifactRef:
    return store(root, cache).publish(folder, stage="sft", kind="model")


def key_of(ref: ArtifactRef, name: str) -> str:
    return f"{ref.uri.removeprefix(f's3://{BUCKET}/')}/{name}"


def test_what_is_published_here_is_fetched_elsewhere(root: str, folder: Path, tmp_path: Path) -> None:
    ref = publish(root, folder, tmp_path / "here")
    assert ref.uri == f"{root}/sft/{ref.sha256[:16]}"
    assert ref.sha256 == Manifest.of(folder).sha256
    fetched = open_store(root, cache=tmp_path / "elsewhere").fetch(ref)
    assert fetched.is_relative_to(tmp_path / "elsewhere")
    assert {name: (fetched / name).read_bytes() for name in FILES} == FILES
    assert not os.access(fetched / "note.txt", os.W_OK) or os.geteuid() == 0
    assert (fetched / "note.txt").stat().st_mode & 0o222 == 0


def test_the_same_content_is_sent_once_and_not_fetched_back(
    root: str, folder: Path, tmp_path: Path, s3_proxy: Proxy
) -> None:
    ref = publish(root, folder, tmp_path / "here")
    assert s3_proxy.received < len(BIG) + 20_000
    s3_proxy.reset()
    assert publish(root, made(tmp_path / "copy"), tmp_path / "other") == ref
    store(root, tmp_path / "here").fetch(ref)
    assert s3_proxy.received < 20_000
    assert s3_proxy.sent < 20_000


def test_an_upload_that_breaks_goes_on(root: str, folder: Path, tmp_path: Path, s3_proxy: Proxy) -> None:
    s3_proxy.reset(lambda call: Fault(status=403) if "partNumber=4" in call.path else None)
    with pytest.raises(StoreError, match="refused the credentials"):
        publish(root, folder, tmp_path / "here")
    assert not [call for call in s3_proxy.made("PUT") if call.key.endswith(MANIFEST)]
    s3_proxy.reset()
    ref = publish(root, folder, tmp_path / "here")
    # Three parts were there: only the last, of seven bytes, and the manifest are sent.
    assert s3_proxy.received < 20_000
    fetched = store(root, tmp_path / "elsewhere").fetch(ref)
    assert (fetched / "model/weights.bin").read_bytes() == BIG


def test_a_killed_upload_goes_on(
    root: str, folder: Path, tmp_path: Path, s3: S3Server, s3_proxy: Proxy
) -> None:
    s3_proxy.reset(lambda call: Fault(seconds=60) if "partNumber=4" in call.path else None)
    child = subprocess.Popen([*PUBLISH, root, str(folder), str(tmp_path / "here")])
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and num_parts(s3, root) < 3:
        time.sleep(0.2)
    child.kill()
    child.wait()
    assert num_parts(s3, root) == 3
    s3_proxy.reset()
    ref = publish(root, folder, tmp_path / "here")
    assert s3_proxy.received < 20_000
    assert (store(root, tmp_path / "there").fetch(ref) / "model/weights.bin").read_bytes() == BIG


def num_parts(s3: S3Server, root: str) -> int:
    """Parts of unfinished uploads under the root."""
    client, prefix = s3.client(), root.removeprefix(f"s3://{BUCKET}/")
    uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
    return sum(
        len(client.list_parts(Bucket=BUCKET, Key=each["Key"], UploadId=each["UploadId"]).get("Parts", []))
        for each in uploads
    )


def test_a_writer_that_may_do_no_more_is_enough(
    root: str, folder: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment("writer").items():
        monkeypatch.setenv(name, value)
    ref = publish(root, folder, tmp_path / "here")
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    assert store(root, tmp_path / "elsewhere").fetch(ref).is_dir()


def test_a_store_that_fails_and_cuts_only_takes_longer(
    root: str, folder: Path, tmp_path: Path, s3_proxy: Proxy
) -> None:
    def rule(call: Call) -> Fault | None:
        return {3: Fault(status=503), 5: Fault(status=500), 8: Fault(seconds=0.5)}.get(call.number)

    s3_proxy.reset(rule)
    ref = publish(root, folder, tmp_path / "here")
    faults = iter([Fault(cut_after=PART // 3), Fault(status=503), Fault(cut_after=0)])
    s3_proxy.reset(lambda call: next(faults, None) if "weights.bin" in call.path else None)
    fetched = store(root, tmp_path / "elsewhere").fetch(ref)
    assert (fetched / "model/weights.bin").read_bytes() == BIG


def test_two_writers_of_one_artifact_do_no_harm(
    root: str, folder: Path, tmp_path: Path, s3_proxy: Proxy
) -> None:
    children = [
        subprocess.Popen(
            [*PUBLISH, root, str(folder), str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    said = [child.communicate(timeout=120)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert said[0] == said[1]
    ref = ArtifactRef(uri=said[0], sha256=Manifest.of(folder).sha256, kind="model")
    fetched = store(root, tmp_path / "elsewhere").fetch(ref)
    assert {name: (fetched / name).read_bytes() for name in FILES} == FILES


def test_a_place_that_holds_something_else_is_not_overwritten(
    root: str, folder: Path, tmp_path: Path, s3: S3Server
) -> None:
    ref = publish(root, folder, tmp_path / "here")
    other = Manifest.of(made(tmp_path / "other", **{"note.txt": b"another"}))
    s3.client().put_object(Bucket=BUCKET, Key=key_of(ref, MANIFEST), Body=other.text().encode())
    with pytest.raises(ArtifactError, match="holds another artifact"):
        publish(root, folder, tmp_path / "here")
    with pytest.raises(ArtifactError, match=r"has digest .*, expected"):
        store(root, tmp_path / "elsewhere").fetch(ref)


@pytest.mark.parametrize("damage", ["changed", "removed", "shortened", "unfinished"])
def test_damage_is_named(damage: str, root: str, folder: Path, tmp_path: Path, s3: S3Server) -> None:
    ref = publish(root, folder, tmp_path / "here")
    key = key_of(ref, "note.txt")
    if damage == "changed":
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"jello")
        says = r"note.txt has sha256 .* its manifest says"
    elif damage == "shortened":
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"hell")
        says = "note.txt has 4 bytes, and its manifest says 5"
    elif damage == "removed":
        s3.client().delete_object(Bucket=BUCKET, Key=key)
        says = "note.txt is missing"
    else:
        s3.client().delete_object(Bucket=BUCKET, Key=key_of(ref, MANIFEST))
        says = "is missing: it has no artifact.json"
    with pytest.raises(ArtifactError, match=says):
        store(root, tmp_path / "elsewhere").fetch(ref)
    assert not list((tmp_path / "elsewhere").rglob(MANIFEST))


def test_a_manifest_cannot_write_outside_its_folder(
    root: str, folder: Path, tmp_path: Path, s3: S3Server
) -> None:
    ref = publish(root, folder, tmp_path / "here")
    text = Manifest.of(folder).text().replace("note.txt", "../../note.txt")
    s3.client().put_object(Bucket=BUCKET, Key=key_of(ref, MANIFEST), Body=text.encode())
    with pytest.raises(ArtifactError, match="could leave its folder"):
        store(root, tmp_path / "elsewhere").fetch(ref)


def test_the_command_fetches_verifies_and_continues(
    root: str,
    folder: Path,
    tmp_path: Path,
    work_dir: Path,
    s3_proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ref = publish(root, folder, tmp_path / "here")
    target = tmp_path / "mine" / "model"
    s3_proxy.reset(lambda call: Fault(status=403) if call.key.endswith("weights.bin") else None)
    assert main(["fetch", ref.uri, str(target)]) == 1
    assert "refused the credentials" in capsys.readouterr().err
    assert not target.exists()
    s3_proxy.reset()
    assert main(["fetch", f"{ref.uri}#{ref.sha256}", str(target)]) == 0
    assert {name: (target / name).read_bytes() for name in FILES} == FILES
    assert f"sha256 {ref.sha256}" in capsys.readouterr().out
    assert main(["fetch", ref.uri, str(target)]) == 0
    assert "already" in capsys.readouterr().out
    assert main(["fetch", ref.uri, str(folder.parent)]) == 2
    assert main(["fetch", f"{ref.uri}#{'0' * 64}", str(tmp_path / "new")]) == 1
    assert main(["fetch", "nonsense/path", str(tmp_path / "new")]) == 2
    # The same for an artifact of this machine.
    here = (tmp_path / "here" / "artifacts" / ref.sha256[:16]).as_uri()
    assert main(["fetch", here, str(tmp_path / "copy")]) == 0
    shutil.rmtree(tmp_path / "here")
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in FILES} == FILES
