"""One place decides where a run keeps things."""

import os
from pathlib import Path

import pytest

from models.errors import ConfigError
from tasks.settings import Settings, child_environment, prepare


def test_everything_lies_under_the_work_directory(work_dir: Path) -> None:
    settings = Settings.read()
    assert settings.work_dir == work_dir
    assert settings.artifacts == (work_dir / "artifacts").as_uri()
    assert settings.tracking_uri == f"sqlite:///{work_dir}/mlflow.db"
    assert settings.prefect_api_url == ""
    assert settings.max_children == 0
    assert not settings.refresh


def test_the_default_is_a_hidden_folder_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLM_R3_WORK_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Settings.read().work_dir == tmp_path / ".vlm-r3"


def test_prepare_keeps_what_the_user_set(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "DO_NOT_TRACK": "0"})
    settings = prepare(work_dir, refresh=True)
    assert settings.tracking_uri == "http://127.0.0.1:1"
    assert settings.refresh
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1"
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert os.environ["PREFECT_HOME"] == str(work_dir / "prefect")
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["VLM_R3_WORK_DIR"] == str(work_dir)


@pytest.mark.parametrize("text", ["two", "-1", "1.5"])
def test_a_bad_number_is_refused(work_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VLM_R3_MAX_CHILDREN", text)
    with pytest.raises(ConfigError, match=f"VLM_R3_MAX_CHILDREN is '{text}'"):
        Settings.read()


def test_a_child_finds_ninja_and_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = child_environment(num_threads=2, bin_folder=Path("/env/bin"))
    assert environment["PATH"] == "/env/bin:/usr/bin"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    # 0 leaves the number to whoever set it.
    assert child_environment(num_threads=0, bin_folder=Path("/env/bin"))["OMP_NUM_THREADS"] == "7"
