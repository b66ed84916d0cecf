"""The doctor looks at a real bucket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli import main
from tests.s3_server import BUCKET, S3Server, s3_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


@pytest.mark.parametrize(
    ("user", "bucket", "expected"),
    [
        ("owner", BUCKET, "ok   artifact store     s3://data/artifacts at"),
        ("reader", BUCKET, "refused the credentials"),
        ("nobody", BUCKET, "refused the credentials"),
        ("owner", "nowhere", "there is no bucket 'nowhere'"),
    ],
)
def test_a_bucket_is_tried(
    user: str,
    bucket: str,
    expected: str,
    server: S3Server,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in server.environment(user).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLM_R3_ARTIFACTS", f"s3://{bucket}/artifacts")
    code = main(["doctor"])
    out = capsys.readouterr().out
    line = line_of(out, "artifact store")
    assert expected in line
    assert line.startswith("ok") is (user == "owner" and bucket == BUCKET)
    if not line.startswith("ok"):
        assert code == 1
        assert "->" in out
    assert f"{user * 2}" not in out
    left = server.client().list_objects_v2(Bucket=BUCKET)
    assert left.get("KeyCount", 0) == 0
