"""Measured benchmarks are found in stores and folders, each once, unless they were changed."""

import os
from pathlib import Path

import pytest

from flows.cli import main
from models.errors import ArtifactError, ConfigError, ScoringError
from tasks.artifacts import FileStore
from tasks.measured import measured_benchmarks
from tests.benchmark_results_examples import some_results


def keep(folder: Path, **changes: object) -> Path:
    some_results(**changes).save(folder / "metrics.json")
    return folder


def test_the_store_and_the_run_directory_hold_one_result(tmp_path: Path, work_dir: Path) -> None:
    run = keep(work_dir / "runs" / "benchmark-1")
    FileStore(work_dir / "artifacts").publish(run, stage="benchmark", kind="benchmark")
    (found,) = measured_benchmarks([])
    assert found.results == some_results()
    assert len(measured_benchmarks([str(work_dir)])) == 1
    assert len(measured_benchmarks([(work_dir / "artifacts").as_uri()])) == 1


def test_results_of_other_stages_are_passed_over(tmp_path: Path) -> None:
    keep(tmp_path / "mine")
    for name, text in (("a", '{"version": "evaluation/1"}'), ("b", "[1]"), ("c", "no json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    assert len(measured_benchmarks([str(tmp_path)])) == 1


def test_results_of_another_version_are_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"version": "benchmark/0"}')
    with pytest.raises(ScoringError, match="does not hold the results of a benchmark"):
        measured_benchmarks([str(tmp_path)])


def test_a_stored_result_that_was_changed_is_refused(tmp_path: Path) -> None:
    ref = FileStore(tmp_path / "store").publish(keep(tmp_path / "run"), stage="benchmark", kind="benchmark")
    stored = Path(ref.uri.removeprefix("file://")) / "metrics.json"
    os.chmod(stored, 0o644)
    stored.write_text(stored.read_text().replace("50.0", "99.0"))
    with pytest.raises(ArtifactError, match="changed after it was stored"):
        measured_benchmarks([str(tmp_path / "store")])


@pytest.mark.parametrize(
    ("place", "says"), [("/nowhere", "there is no such folder"), ("s3://bucket/x", "no local store")]
)
def test_a_place_that_is_none_is_refused(place: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        measured_benchmarks([place])


def test_the_command_prints_both(tmp_path: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "run", model={"name": "qwen2.5-vl-7b"}, value=58.6)
    assert main(["table", "--runs", str(tmp_path / "run"), "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "| qwen2.5-vl-7b | measured, direct |" in out
    assert "58.6 [56.6, 60.6]" in out
    assert "| *GPT-4o" in out


def test_an_empty_workspace_has_the_published_rows(
    work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table"]) == 0
    out, err = capsys.readouterr()
    assert "Ours 7B" in out
    assert "Nothing was measured yet" in err
