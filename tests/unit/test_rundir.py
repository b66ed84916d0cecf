import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name

from models.config import Look
from models.errors import RunDirError
from models.rundir import Result, RunDir, link_or_copy, metric_part, write_atomically
from models.trajectory import TurnError


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", Look())


def test_the_child_reads_the_configuration_that_the_parent_wrote(run):
    child = RunDir.open(run.path)
    assert Look.model_validate_json(child.config_text()) == Look()
    assert json.loads(child.config_text())["max_crops"] == Look().max_crops


def test_a_folder_without_configuration_is_no_run(tmp_path):
    with pytest.raises(RunDirError, match=r"no config\.json"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "rollouts"])
def test_a_file_where_a_folder_goes_is_no_run(run, name):
    (run.path / name).write_text("")
    with pytest.raises(RunDirError, match=f"{name} is a file, and a folder goes there"):
        RunDir.open(run.path)


def test_an_unfinished_run_of_the_same_configuration_is_kept(run):
    run.log(1, {"train/loss": 2.0})
    again = RunDir.create(run.path, Look())
    assert [line["train/loss"] for line in again.metrics()] == [2.0]


def test_a_run_of_another_configuration_is_not_overwritten(run):
    with pytest.raises(RunDirError, match="another configuration"):
        RunDir.create(run.path, Look(max_crops=1))
    assert Look.model_validate_json(run.config_text()) == Look()


def test_the_same_configuration_reads_the_same_in_every_process():
    # The order of a set of strings changes from process to process.
    code = (
        "from models.config import Look; from models.trajectory import TurnError; "
        "print(Look(end_on=frozenset(TurnError)).model_dump_json())"
    )
    root = Path(__file__).parents[2]
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(texts) == 1
    assert all(error.value.encode() in texts.copy().pop() for error in TurnError)


def test_metrics_are_lines_with_step_and_time(run):
    run.log(3, {"train/loss": 1, "eval/mean@8": 0.5})
    run.log(4, {"train/loss": 0.5})
    first, second = run.metrics()
    assert (first["step"], first["train/loss"], first["eval/mean@8"]) == (3, 1.0, 0.5)
    assert first["time"] <= second["time"]
    assert len(run.metrics_path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "name", ["loss", "Train/loss", "train/", "/loss", "train/lo\tss", "train/ ", "train//loss"]
)
def test_a_metric_name_has_an_area(run, name):
    with pytest.raises(RunDirError, match="area/name"):
        run.log(1, {name: 1.0})
    assert list(run.metrics()) == []


@pytest.mark.parametrize("kind", ["read", "Chart-QA", "multi choice", "v1.5", "OCR_2"])
def test_a_kind_is_its_own_part_of_a_name(run, kind):
    assert metric_part(kind) == kind
    run.log(1, {f"rgrpo/correct/{metric_part(kind)}": 1.0})


@pytest.mark.parametrize("kind", ["chart/bar", "math (hard)", "\u56fe\u8868", "..", " ", "50%", "x" * 300])
def test_a_kind_that_no_name_may_hold_is_written_otherwise(run, kind):
    assert metric_part(kind) != metric_part(kind + "!") != metric_part(kind + "?")
    name = f"rgrpo/correct/{metric_part(kind)}"
    run.log(1, {name: 1.0})
    assert len(name) < 100
    _validate_metric_name(name)


def test_values_that_json_cannot_hold_are_left_out(run):
    run.log(1, {"train/loss": float("nan"), "train/grad_norm": float("inf"), "train/lr": 0.1})
    (line,) = run.metrics()
    assert set(line) == {"step", "time", "train/lr"}


def test_a_line_that_is_still_being_written_is_left_for_later(run):
    run.log(1, {"train/loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "train/lo')
    assert [line["step"] for line in run.metrics()] == [1]
    run.log(2, {"train/loss": 0.5})  # the run goes on
    assert [line["step"] for line in run.metrics()] == [1, 2]


@pytest.mark.parametrize("line", ['{"step": 2, "train/lo', "\0\0\0", "2"])
def test_a_line_that_was_damaged_later_is_named(run, line):
    run.log(1, {"train/loss": 1.0})
    with run.metrics_path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunDirError, match=r"metrics\.jsonl, line 2 is damaged .* Remove this line and start"):
        list(run.metrics())


def test_there_are_no_metrics_before_the_first(run):
    assert list(run.metrics()) == []


def test_a_checkpoint_appears_only_when_it_is_complete(run):
    with run.checkpoint(5) as folder:
        (folder / "weights").write_text("w")
        assert not (run.path / "checkpoints" / "step-5").exists()
    assert (run.path / "checkpoints" / "step-5" / "weights").read_text() == "w"


def test_a_failed_checkpoint_keeps_the_old_one(run):
    with run.checkpoint(5) as folder:
        (folder / "weights").write_text("old")

    def fail():
        with run.checkpoint(5) as folder:
            (folder / "weights").write_text("new")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert (run.path / "checkpoints" / "step-5" / "weights").read_text() == "old"
    with run.checkpoint(5) as folder:
        assert list(folder.iterdir()) == []  # what the failed try left is gone


def test_the_result_survives(run):
    result = Result(status="done", artifacts={"model": "model"}, metrics={"train/loss": 0.5}, seconds=3.5)
    run.finish(result)
    assert RunDir.open(run.path).result() == result


def test_a_result_is_forgotten_with_what_was_left_of_one(run, monkeypatch):
    run.finish(Result(status="failed"))
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: None)  # while it was written again
        run.finish(Result(status="done"))
    assert len(list(run.path.iterdir())) == 3
    run.forget_result()
    assert [path.name for path in run.path.iterdir()] == ["config.json"]
    run.forget_result()


def test_no_result_is_a_failure(run):
    with pytest.raises(RunDirError, match=r"no result\.json"):
        run.result()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"status": "splendid"}', '{"status": "done", "extra": 1}', '{"reason": "?"}']
)
def test_a_malformed_result_is_a_failure(run, text):
    (run.path / "result.json").write_text(text)
    with pytest.raises(RunDirError, match="malformed"):
        run.result()


def test_writing_leaves_no_parts_behind(tmp_path):
    write_atomically(tmp_path / "deep" / "a.json", "1")
    write_atomically(tmp_path / "deep" / "a.json", "2")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_text() == "2"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_gets_a_second_name_also_where_there_are_no_links(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "a").write_text("weights")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "weights"
    assert (tmp_path / "a").samefile(tmp_path / "b") == has_links


def refuse(self: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")
