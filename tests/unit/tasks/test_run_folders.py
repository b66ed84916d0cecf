"""Run directories by path, by name and by label."""

import os
from pathlib import Path

import pytest

from models.errors import ConfigError
from tasks.run_folders import find_run


def make(folder: Path, *, at: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    os.utime(folder / "config.json", (at, at))
    return folder


def test_a_run_is_found_by_path_by_name_and_by_label(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    old, new = make(runs / "rgrpo-bbb", at=1), make(runs / "rgrpo-aaa", at=2)
    make(runs / "no_sft-ccc", at=3)
    assert find_run(str(old), runs).path == old
    assert find_run("rgrpo-bbb", runs).path == old
    assert find_run("rgrpo", runs).path == new
    with pytest.raises(ConfigError, match=r"'sft' is no run directory.*no_sft-ccc, rgrpo-aaa, rgrpo-bbb"):
        find_run("sft", runs)
