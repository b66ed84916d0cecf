"""Two promotions at once, and one that is killed between its writes: who is champion is never in doubt."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.journal import S3Journal
from tasks.promotions import records
from tasks.registry import promote_version, register, roll_back, version_named
from tasks.settings import Settings, prepare
from tasks.versions import find_version, read_registry, registry_client
from tests.evidence_examples import POLICY
from tests.mlflow_server import mlflow_server
from tests.registry_examples import stored_evidence, stored_model
from tests.s3_proxy import Proxy
from tests.s3_server import BUCKET

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "server"])
def tracker(
    request: pytest.FixtureRequest, settings: Settings, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A registry in a database of this machine, and one behind a server."""
    if request.param == "sqlite":
        yield
        return
    with mlflow_server(work_dir / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        prepare(work_dir)
        yield


def promoting(version: str, *options: str) -> "subprocess.Popen[bytes]":
    program = ROOT / "tests" / "integration" / "promote_in_process.py"
    return subprocess.Popen([sys.executable, str(program), version, *options], cwd=ROOT)


def champion_and_challengers(folder: Path) -> None:
    """Version 1 is champion; 2 and 3 were compared with it, and both are better."""
    first = stored_model(folder, "first")
    asyncio.run(register.fn(first, stored_evidence(folder, first)))
    assert asyncio.run(promote_version.fn(version_named("1"), POLICY)).is_champion
    for name in ("second", "third"):
        weights = stored_model(folder, name)
        evidence = stored_evidence(folder, weights, champion=first, parent_version="1")
        asyncio.run(register.fn(weights, evidence))


def aliases() -> dict[str, str]:
    found = registry_client().get_registered_model("vlm-r3").aliases
    return {alias: str(number) for alias, number in found.items()}


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(tracker: None, tmp_path: Path) -> None:
    champion_and_challengers(tmp_path)
    (tmp_path / "meeting").mkdir()
    both = {version: promoting(version, "--meet", str(tmp_path / "meeting")) for version in ("2", "3")}
    codes = {version: process.wait(timeout=300) for version, process in both.items()}
    assert sorted(codes.values()) == [0, 3]
    winner, loser = sorted(codes, key=lambda version: codes[version])
    assert aliases() == {"challenger": "3", "champion": winner, "previous": "1"}
    history = records(read_registry(registry_client()))
    assert [(found.action, found.version) for found in history] == [
        ("promoted", "1"),
        ("promoted", winner),
        ("refused", loser),
    ]
    assert [check.name for check in history[-1].checks if not check.passed] == ["comparison"]


@pytest.mark.parametrize(
    "call",
    ["set_registered_model_tag", "set_registered_model_alias", "set_registered_model_alias:2"],
)
def test_a_promotion_that_is_killed_between_its_writes_is_finished_by_the_next_start(
    call: str, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion_and_challengers(tmp_path)
    assert promoting("2", "--die-at", call).wait(timeout=300) == -9
    assert aliases()["champion"] == "1"  # MLflow still shows the old one; the history has decided
    champion, previous = find_version("champion"), find_version("previous")
    assert champion is not None
    assert previous is not None
    assert (champion.number, previous.number) == ("2", "1")
    assert "a promotion was cut short" in caplog.text

    refused = asyncio.run(promote_version.fn(version_named("3"), POLICY))
    assert not refused.is_champion  # it was compared with version 1
    assert aliases() == {"challenger": "3", "champion": "2", "previous": "1"}
    tags = registry_client().get_registered_model("vlm-r3").tags
    assert {"history.000001", "history.000002", "history.000003"} <= set(tags)
    assert asyncio.run(roll_back.fn(version_named("previous"))).is_champion
    assert aliases() == {"challenger": "3", "champion": "1", "previous": "2"}


def test_a_journal_in_s3_takes_an_entry_once(s3_proxy: Proxy, tmp_path: Path) -> None:
    place = f"s3://{BUCKET}/{tmp_path.name}/history/0"
    first, second = S3Journal(place), S3Journal(place)
    assert (first.last(), first.create(1, "one"), second.create(1, "another")) == (0, True, False)
    assert (second.last(), second.read(1)) == (1, "one")
    assert first.create(1, "one")  # our own, of which the reply was lost
