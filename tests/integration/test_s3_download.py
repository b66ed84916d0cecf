"""Downloads from a real S3 server that has a bad day: complete and right, or an error, and continued."""

import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.errors import ArtifactError, ObjectChangedError, StoreError
from tasks.s3 import S3, RemoteObject
from tasks.s3_download import Wanted, download
from tasks.uris import S3Uri
from tests.s3_proxy import Call, Fault, Proxy, first
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.integration

PART = 1 << 20
BIG = os.urandom(6 * PART + 123)
SMALL = b"abc"
FETCH = (sys.executable, "-m", "tests.integration.fetch_prefix")
# sha256 of b"abc" is a published test vector (FIPS 180-2).
SMALL_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def prefix(s3: S3Server, tmp_path: Path) -> S3Uri:
    """A prefix with a large file, a small one and an empty one."""
    key = f"download/{tmp_path.name}"
    for name, data in (("sub/big.bin", BIG), ("small.txt", SMALL), ("empty", b"")):
        s3.client().put_object(Bucket=BUCKET, Key=f"{key}/{name}", Body=data)
    return S3Uri(BUCKET, key)


def fetch(prefix: S3Uri, target: Path, *, max_tries: int = 6, **sha256: str) -> list[int]:
    """Download the prefix; what was here at each report of progress."""
    s3, seen = S3(max_tries=max_tries), []
    wanted = [Wanted(found, prefix.name_of(found.uri)) for found in s3.objects(prefix)]
    wanted = [Wanted(each.found, each.name, sha256.get(each.name.partition(".")[0], "")) for each in wanted]
    download(s3, wanted, target, on_progress=lambda done, total: seen.append(done), part_size=PART)
    return seen


def whole(target: Path) -> bool:
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    return (
        found == {"sub/big.bin", "small.txt", "empty"}
        and (target / "sub/big.bin").read_bytes() == BIG
        and (target / "small.txt").read_bytes() == SMALL
        and (target / "empty").read_bytes() == b""
    )


def test_a_folder_is_fetched_once(s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path) -> None:
    seen = fetch(prefix, tmp_path / "there", small=SMALL_SHA256)
    assert whole(tmp_path / "there")
    assert sorted(seen)[-1] == len(BIG) + len(SMALL)
    assert not (tmp_path / "there.partial").exists()
    s3_proxy.reset()
    assert fetch(prefix, tmp_path / "there") == []
    assert s3_proxy.made("GET", "big.bin") == []


def test_errors_slowness_and_cuts_are_overcome(s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path) -> None:
    bad = [Fault(status=503), Fault(cut_after=PART // 2), Fault(seconds=0.5), Fault(status=500)]
    faults = iter([*bad, Fault(cut_after=0), Fault(cut_after=PART - 1)])
    s3_proxy.reset(lambda call: next(faults, None) if "big.bin" in call.path else None)
    fetch(prefix, tmp_path / "there")
    assert whole(tmp_path / "there")
    assert next(faults, None) is None
    # A cut body goes on where it was cut: nothing is sent twice.
    assert s3_proxy.sent < len(BIG) + 20_000


def test_a_store_that_never_recovers_is_an_error_and_the_next_start_goes_on(
    s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path
) -> None:
    last = f"bytes={5 * PART}-{6 * PART - 1}"
    s3_proxy.reset(
        lambda call: (
            Fault(cut_after=10, seconds=0.5) if call.headers.get("Range", "").endswith(last[-9:]) else None
        )
    )
    with pytest.raises(StoreError, match=r"big.bin: the connection was cut 2 times .* is kept"):
        fetch(prefix, tmp_path / "there", max_tries=2)
    assert not (tmp_path / "there").exists()
    s3_proxy.reset()
    seen = fetch(prefix, tmp_path / "there")
    assert whole(tmp_path / "there")
    # Eight parts are under way at a time, so all but the cut one may be here; at least one is.
    assert seen[0] > PART
    assert s3_proxy.sent <= len(BIG) - PART + 20_000


def test_a_killed_download_goes_on(s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path) -> None:
    slow = [0]

    def rule(call: Call) -> Fault | None:
        if call.method == "GET" and "big.bin" in call.path:
            slow[0] += 1
            return Fault(seconds=0.2) if slow[0] <= 3 else Fault(seconds=60)
        return None

    s3_proxy.reset(rule)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.fetch_prefix", str(prefix), str(tmp_path)]
    )
    notes = tmp_path / "there.partial" / "notes"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not _num_notes(notes) >= 3:
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert _num_notes(notes) >= 3
    s3_proxy.reset()
    fetch(prefix, tmp_path / "there")
    assert whole(tmp_path / "there")
    assert s3_proxy.sent <= len(BIG) - 3 * PART + 20_000


def test_a_full_disk_keeps_what_was_fetched(s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path) -> None:
    def slow_where_the_disk_ends(call: Call) -> Fault | None:
        start = int(call.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        return Fault(seconds=1.0) if start >= 2 * PART else None

    s3_proxy.reset(slow_where_the_disk_ends)
    child = subprocess.run(
        [*FETCH, str(prefix), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PART, 2 * PART)),
    )
    assert child.returncode == 1
    assert "no room for sub/big.bin (File too large). Make room and start again" in child.stderr
    assert not (tmp_path / "there").exists()
    s3_proxy.reset()
    fetch(prefix, tmp_path / "there")
    assert whole(tmp_path / "there")
    assert s3_proxy.sent <= len(BIG) - PART + 20_000


def test_what_has_no_room_is_not_begun(s3_proxy: Proxy, tmp_path: Path) -> None:
    huge = RemoteObject(S3Uri(BUCKET, "huge"), 10**13, '"0"', datetime.now(UTC))
    with pytest.raises(StoreError, match=r"10000\.00 GB are to be fetched and .* GB are free"):
        download(S3(), [Wanted(huge, "huge")], tmp_path / "there", on_progress=lambda *_: None)
    assert s3_proxy.calls == []


def test_an_object_that_changes_is_noticed(
    s3: S3Server, s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path
) -> None:
    def replace() -> None:
        s3.client().put_object(Bucket=BUCKET, Key=f"{prefix.key}/sub/big.bin", Body=BIG[::-1])

    s3_proxy.reset(first(1, Fault(before=replace), key="big.bin"))
    with pytest.raises(ObjectChangedError, match=r"big.bin changed while it was read. Start again"):
        fetch(prefix, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    fetch(prefix, tmp_path / "there")
    assert (tmp_path / "there" / "sub/big.bin").read_bytes() == BIG[::-1]


def test_an_object_that_vanishes_is_named(
    s3: S3Server, s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path
) -> None:
    def remove() -> None:
        s3.client().delete_object(Bucket=BUCKET, Key=f"{prefix.key}/sub/big.bin")

    s3_proxy.reset(first(1, Fault(before=remove), key="big.bin"))
    with pytest.raises(StoreError, match=r"big.bin: there is no such object. It was there a moment ago"):
        fetch(prefix, tmp_path / "there")


def test_content_of_another_digest_is_refused(s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"small.txt has sha256 ba7816bf8f01, its manifest says 000000000000"
    ):
        fetch(prefix, tmp_path / "there", small="0" * 64)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another-secret"}, "refused the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "refused the credentials"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store cannot be used"),
    ],
    ids=["wrong secret", "unknown key", "no credentials", "no server"],
)
def test_refusals_say_what_to_do_and_show_no_secret(
    changed: dict[str, str],
    says: str,
    s3_proxy: Proxy,
    prefix: S3Uri,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=says) as caught:
        fetch(prefix, tmp_path / "there", max_tries=2)
    assert "secret" not in str(caught.value).lower().replace("aws_secret_access_key", "")


def test_what_may_only_read_can_fetch(
    s3: S3Server, s3_proxy: Proxy, prefix: S3Uri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    fetch(prefix, tmp_path / "there")
    assert whole(tmp_path / "there")
    with pytest.raises(StoreError, match="refused the credentials"):
        S3().put(prefix.child("new"), b"")


def _num_notes(folder: Path) -> int:
    """Parts of the large file that are whole."""
    return max((path.read_text().count("\n") - 1 for path in folder.glob("*")), default=0)
