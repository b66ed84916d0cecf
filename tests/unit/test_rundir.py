"""The run directory: the boundary between orchestration and a child process."""

import pytest

from models.config import Look
from models.errors import RunDirError
from models.rundir import Result, RunDir


def test_a_run_can_be_opened_by_another_process(tmp_path):
    RunDir.create(tmp_path / "run", Look())
    assert Look.model_validate_json(RunDir.open(tmp_path / "run").config_text()) == Look()


def test_an_unfinished_run_of_the_same_configuration_goes_on(tmp_path):
    RunDir.create(tmp_path, Look()).log(1, {"sft/loss": 2.0})
    again = RunDir.create(tmp_path, Look())
    assert [line["sft/loss"] for line in again.metrics()] == [2.0]


def test_a_run_of_another_configuration_is_not_overwritten(tmp_path):
    RunDir.create(tmp_path, Look())
    with pytest.raises(RunDirError, match="another configuration"):
        RunDir.create(tmp_path, Look(max_crops=1))


def test_a_folder_without_configuration_is_not_a_run(tmp_path):
    with pytest.raises(RunDirError, match=r"no config\.json"):
        RunDir.open(tmp_path)


def test_metric_names_have_an_area(tmp_path):
    run = RunDir.create(tmp_path, Look())
    with pytest.raises(RunDirError, match="area/name"):
        run.log(0, {"loss": 1.0})


def test_numbers_that_json_does_not_know_are_left_out(tmp_path):
    run = RunDir.create(tmp_path, Look())
    run.log(3, {"sft/loss": float("nan"), "sft/rate": 0.5})
    (line,) = run.metrics()
    assert (line["step"], line["sft/rate"], "sft/loss" in line) == (3, 0.5, False)


def test_a_checkpoint_appears_only_when_it_is_whole(tmp_path):
    run = RunDir.create(tmp_path, Look())

    def save_half() -> None:
        with run.checkpoint(4) as folder:
            (folder / "part").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_half()
    assert not (tmp_path / "checkpoints" / "step-4").exists()
    with run.checkpoint(4) as folder:
        (folder / "weights").write_text("whole")
    assert [path.name for path in (tmp_path / "checkpoints" / "step-4").iterdir()] == ["weights"]


def test_a_missing_or_malformed_result_is_a_failure(tmp_path):
    run = RunDir.create(tmp_path, Look())
    with pytest.raises(RunDirError, match=r"no result\.json"):
        run.result()
    (tmp_path / "result.json").write_text('{"status": "fine"}')
    with pytest.raises(RunDirError, match="malformed"):
        run.result()
    run.finish(Result(status="done", artifacts={"model": "model"}))
    assert run.result().artifacts == {"model": "model"}
