"""What a stage takes for done."""

from pathlib import Path

import pytest

from models.config import Look
from models.rundir import Result, RunDir
from tasks.stage import is_done


@pytest.mark.parametrize("text", ["", "{", '{"status": "well"}'])
def test_a_result_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    """As a machine leaves it that lost its power: the stage goes on instead of failing for good."""
    run = RunDir.create(tmp_path, Look())
    assert not is_done(run)
    (tmp_path / "result.json").write_text(text)
    assert not is_done(run)
    run.finish(Result(status="paused"))
    assert not is_done(run)
    run.finish(Result(status="done"))
    assert is_done(run)
