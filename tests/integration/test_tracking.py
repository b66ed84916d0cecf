"""MLflow with SQLite and local files, as a run uses it."""

import json
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from models.errors import TrackingError
from tasks import tracking
from tasks.settings import Settings

pytestmark = pytest.mark.integration


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


MEASURED = tracking.Measured(
    model="models:/a",
    model_digest="a" * 64,
    model_tags={"model_uri": "file:///a"},
    data="mme/test",
    data_digest="d" * 64,
    data_source="/data/mme",
)


def test_numbers_are_linked_to_one_record_of_their_model_and_to_their_data(settings: Settings) -> None:
    client, values = tracking.client(settings), {"benchmark/mme/headline": 0.5, "benchmark/mme/x@1": 1.0}
    for name in ("first", "second"):
        with tracking.tracked_run(settings, name) as run:
            run.log_measured(values, MEASURED)
            run.log_table({"id": ["a", "b"], "score": [1.0, None]}, "rows.json")
            run.log_params({"scorer": {"version": "1"}})
            run.tag({"artifact.benchmark": f"file:///{name}#{name}"})
    found = client.get_run(run.id)
    (model,) = found.inputs.model_inputs
    assert tracking.logged_model(settings, name="b", digest="a" * 64, tags={}) == model.model_id
    assert tracking.logged_model(settings, name="b", digest="b" * 64, tags={}) != model.model_id
    logged = client.get_logged_model(model.model_id)
    assert (logged.name, logged.tags["model_uri"]) == ("models--a", "file:///a")
    assert {(point.key, point.value) for point in logged.metrics or ()} == {
        ("benchmark/mme/headline", 0.5),
        ("benchmark/mme/x_at_1", 1.0),
    }
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("mme/test", "d" * 36)
    assert found.data.params == {"scorer.version": "1"}
    table = settings.tracking_files / run.id / "artifacts" / "rows.json"
    assert json.loads(table.read_text()) == {"columns": ["id", "score"], "data": [["a", 1.0], ["b", None]]}
    # An earlier run is found by its id and by its name.
    assert tracking.find_artifact(settings, "first", "benchmark") == ("file:///first", "first")
    assert tracking.find_artifact(settings, run.id, "benchmark") == ("file:///second", "second")
    for unknown in ("third", "0" * 32, 'a "quoted" one'):
        assert tracking.find_artifact(settings, unknown, "benchmark") is None


def test_a_tracker_that_fails_after_the_work_is_a_warning_and_loses_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    client = tracking.client(settings)

    def broken(*arguments: object, **named: object) -> None:
        raise MlflowException("the disk of the tracker is full")

    with tracking.tracked_run(settings, "benchmark") as run:
        for name in ("log_artifact", "log_table", "log_inputs", "set_tag", "log_batch"):
            monkeypatch.setattr(client, name, broken)
        run.log_file(tmp_path / "metrics.json")
        run.log_table({"id": ["a"]}, "rows.json")
        run.log_measured({"benchmark/mme/headline": 0.5}, MEASURED)
        run.log_params({"seed": 0})
        run.tag({"artifact.benchmark": "file:///a#b"})
        monkeypatch.undo()
    for what in ("metrics.json", "rows.json", "metrics linked to their model", "parameters", "tags"):
        assert f"The tracker did not take {what}" in caplog.text
    assert client.get_run(run.id).info.status == "FINISHED"


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
