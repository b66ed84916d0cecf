"""Old artifacts that no version names are removed; nothing else is."""

import asyncio
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.cli import main
from models.evidence import DataEvidence, Kept
from tasks.artifacts import ArtifactRef, local_path, open_store
from tasks.journal import open_journal
from tasks.retention import outdated
from tasks.settings import Settings, prepare
from tests.evidence_examples import make_evidence
from tests.s3_proxy import Proxy
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.integration

LATER = datetime.now(UTC) + timedelta(days=40)


def publish(settings: Settings, tmp_path: Path, content: str, stage: str = "sft") -> ArtifactRef:
    folder = tmp_path / f"made-{content}"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    return open_store(settings.artifacts, cache=tmp_path / "cache").publish(folder, stage=stage, kind="model")


def test_old_artifacts_of_this_machine_go_and_registered_ones_stay(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.registry import register
    from tasks.versions import registry_client

    kept, data, old, young = (publish(settings, tmp_path, name) for name in ("kept", "data", "old", "young"))
    evidence = make_evidence(
        model=Kept(uri=kept.uri, sha256=kept.sha256),
        data=DataEvidence(
            artifact=Kept(uri=data.uri, sha256=data.sha256), num_records=1, licences=("drawn here",)
        ),
    )
    asyncio.run(register.fn(kept, evidence))
    history = local_path(registry_client().get_registered_model("vlm-r3").tags["history_uri"])
    assert open_journal(history.as_uri()).create(1, "a decision")
    month_ago = time.time() - 31 * 24 * 3600
    for ref in (kept, data, old):
        folder = local_path(ref.uri)
        for path in (*folder.iterdir(), folder):
            os.utime(path, (month_ago, month_ago))
    for path in (*history.iterdir(), history):
        os.utime(path, (month_ago, month_ago))
    stranger = local_path(old.uri).parent / "notes"
    shutil.copytree(local_path(old.uri), stranger)

    assert main(["prune"]) == 0
    said = capsys.readouterr().out
    assert old.uri in said
    assert "1 artifacts, 0.0 MB could be removed; nothing was" in said
    assert all(local_path(ref.uri).is_dir() for ref in (kept, data, old, young))

    assert main(["prune", "--delete"]) == 0
    assert "removed 1 artifacts" in capsys.readouterr().out
    assert not local_path(old.uri).exists()
    assert all(local_path(ref.uri).is_dir() for ref in (kept, data, young))
    assert stranger.is_dir()
    assert (history / "000001.json").read_text() == "a decision"
    assert main(["prune", "--older-than", "0"]) == 2


def test_old_artifacts_in_s3_go_with_unfinished_ones(
    work_dir: Path,
    tmp_path: Path,
    s3: S3Server,
    s3_proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLM_R3_ARTIFACTS", f"s3://{BUCKET}/prune/{tmp_path.name}")
    settings = prepare(work_dir)
    first, second = publish(settings, tmp_path, "a"), publish(settings, tmp_path, "b", stage="rgrpo")
    unfinished = f"prune/{tmp_path.name}/sft/{'0' * 16}/config.json"
    elsewhere = f"prune/{tmp_path.name}/sft/notes.txt"
    for key in (unfinished, elsewhere):
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"x")

    assert outdated(settings, older_than=timedelta(days=30), now=datetime.now(UTC)) == []
    found = outdated(settings, older_than=timedelta(days=30), now=LATER)
    assert {each.uri for each in found} == {first.uri, second.uri, f"{settings.artifacts}/sft/{'0' * 16}"}

    from tasks.retention import remove

    s3_proxy.reset()
    remove([each for each in found if each.uri == first.uri], settings)
    assert [call.key.rpartition("/")[2] for call in s3_proxy.made("DELETE")] == [
        "artifact.json",
        "config.json",
    ]
    left = outdated(settings, older_than=timedelta(days=30), now=LATER)
    assert {each.uri for each in left} == {second.uri, f"{settings.artifacts}/sft/{'0' * 16}"}
