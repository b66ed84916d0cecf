"""MLflow with SQLite and local files, as a run uses it."""

import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from models.errors import TrackingError
from tasks import tracking
from tasks.settings import Settings, prepare

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(work_dir: Path) -> Settings:
    return prepare(work_dir)


def line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "time": 1700000000.5 + step, "sft/loss": loss, "progress/done": step}


def test_a_run_keeps_parameters_metrics_files_and_its_parent(settings: Settings, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with (
        tracking.tracked_run(settings, "pipeline") as parent,
        tracking.tracked_run(
            settings, "sft", parent=parent.id, params={"sft": {"num_epochs": 2, "betas": (0.9, 0.95)}}
        ) as run,
    ):
        run.forward(line(1, 0.5))
        run.forward(line(2, 0.25))
        run.forward({"step": 0, "time": 1700000003.0, "eval/mean@8": 0.75})
        run.log_file(note, "notes")
    found = tracking.client(settings).get_run(run.id)
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    assert found.data.params == {"sft.num_epochs": "2", "sft.betas": "(0.9, 0.95)"}
    assert found.data.metrics == {"sft/loss": 0.25, "eval/mean_at_8": 0.75}
    history = tracking.client(settings).get_metric_history(run.id, "sft/loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [
        (1, 0.5, 1700000001500),
        (2, 0.25, 1700000002500),
    ]
    assert found.info.status == "FINISHED"
    kept = settings.tracking_files / run.id / "artifacts" / "notes" / "note.txt"
    assert kept.read_text() == "kept"


def test_metrics_are_there_while_the_stage_still_runs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.05)
    with tracking.tracked_run(settings, "sft") as run:
        run.forward(line(1, 0.5))
        time.sleep(0.1)
        run.forward(line(2, 0.25))
        assert tracking.client(settings).get_run(run.id).data.metrics == {"sft/loss": 0.25}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_how_a_run_ended_is_recorded(settings: Settings, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.tracked_run(settings, "sft") as run:
        raise error
    assert tracking.client(settings).get_run(run.id).info.status == status


def test_what_a_failing_tracker_did_not_take_is_delivered_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = tracking.client(settings)
    working = client.log_batch

    def broken(*arguments: object, **named: object) -> None:
        raise MlflowException("no route to the tracker")

    with tracking.tracked_run(settings, "sft") as run:
        monkeypatch.setattr(client, "log_batch", broken)
        run.forward(line(1, 0.5))
        assert run.flush() is False
        assert "no route to the tracker" in caplog.text
        run.forward(line(2, 0.25))
        monkeypatch.setattr(client, "log_batch", working)
    history = client.get_metric_history(run.id, "sft/loss")
    assert [point.value for point in history] == [0.5, 0.25]


def test_a_tracker_that_cannot_be_used_stops_the_run_at_its_start(
    work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with (
        pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"),
        tracking.tracked_run(Settings.read(), "sft"),
    ):
        pytest.fail("nothing may run without a tracker")
