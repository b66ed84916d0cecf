"""A real MLflow server that is away: at the start nothing begins, in mid-run nothing stops or is lost."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.cli import main
from tasks import tracking
from tasks.settings import Settings, prepare
from tests.mlflow_server import MLflowServer, mlflow_server
from tests.planted import holding

pytestmark = pytest.mark.integration

# It stands in the address, as for a server behind basic authentication.
PASSWORD = "planted-tracker-password"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as found:
        yield found


@pytest.fixture
def settings(work_dir: Path, server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> Settings:
    address = server.address.replace("//", f"//ada:{PASSWORD}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    return prepare(work_dir)


def line(step: int) -> dict[str, float]:
    return {"step": step, "time": 1700000000.0 + step, "sft/loss": 1 / (step + 1)}


def losses(server: MLflowServer, run_id: str) -> dict[int, float]:
    history = MlflowClient(tracking_uri=server.address).get_metric_history(run_id, "sft/loss")
    assert len({point.step for point in history}) == len(history)
    return {point.step: point.value for point in history}


def test_metrics_of_an_outage_in_mid_run_are_back_filled(
    server: MLflowServer,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second outage lasts until after the end: the next run delivers what is left, and closes the run."""
    steps = iter(range(100))
    with tracking.tracked_run(settings, "sft") as run:
        for _ in range(3):
            run.forward(line(next(steps)))
        server.stop()
        began = time.monotonic()
        for _ in range(10):
            run.forward(line(next(steps)))
        run.tag({"artifact.model": "file:///m#d"})
        assert time.monotonic() - began < 60  # it is not asked at every line
        server.start()
        assert run.flush()
        assert losses(server, run.id) == pytest.approx({step: 1 / (step + 1) for step in range(13)})
        server.stop()
        for _ in range(3):
            run.forward(line(next(steps)))
    assert "3 metrics were not delivered. The next run delivers them from" in caplog.text
    assert "The tracker takes no metrics now" in caplog.text

    server.start()
    with tracking.tracked_run(settings, "rgrpo"):
        pass
    assert losses(server, run.id) == pytest.approx({step: 1 / (step + 1) for step in range(16)})
    found = MlflowClient(tracking_uri=server.address).get_run(run.id)
    assert (found.info.status, found.data.tags["artifact.model"]) == ("FINISHED", "file:///m#d")
    assert list(settings.undelivered.iterdir()) == []
    assert PASSWORD not in caplog.text
    for folder in (settings.work_dir, server.folder):
        assert holding(folder, [PASSWORD.encode()]) == []


def test_a_tracker_that_is_down_at_the_start_is_named_before_anything_is_started(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:  # bound and not listening
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{PASSWORD}@{place}")
        for command in (["run"], ["promote"], ["rollback"], ["history"]):
            assert main(command) == 1
            said = capsys.readouterr().err
            assert "TrackingError: Nothing was started, because the tracker does not answer" in said
            assert place in said
            assert PASSWORD not in said
    assert not (work_dir / "runs").exists()
