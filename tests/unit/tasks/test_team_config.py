"""Ports and passwords of a team server: drawn once, private, and in a form that shells read."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tasks.settings import HOME, Settings, service_environment
from tasks.team_config import TeamConfig, compose_secrets, env_text, write_private


def test_they_are_drawn_once(tmp_path: Path) -> None:
    first = TeamConfig.keep(tmp_path)
    assert TeamConfig.keep(tmp_path) == first
    assert TeamConfig.draw().prefect_password != first.prefect_password
    assert len(set(first.ports.values())) == len(first.ports)


def test_a_private_file_is_never_anybody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old, and open to all")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]


def test_a_shell_reads_back_what_was_written(tmp_path: Path, work_dir: Path) -> None:
    values = {**TeamConfig.draw().client_environment(Settings.read(), HOME), "ODD": "a b'c$d"}
    file = tmp_path / "env"
    file.write_text(env_text(values))
    script = f"set -a; . {shlex.quote(str(file))}; env -0"
    done = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True)
    read = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert read.items() >= values.items()


def test_a_container_needs_no_quotes() -> None:
    for name, value in compose_secrets().items():
        assert shlex.quote(value) == value, name


def test_a_server_knows_nothing_of_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody's")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere")
    monkeypatch.setenv("LANG", "C.UTF-8")
    made = service_environment(PREFECT_HOME="/here")
    assert "AWS_SECRET_ACCESS_KEY" not in made
    assert "PREFECT_API_URL" not in made
    assert (made["LANG"], made["PREFECT_HOME"]) == ("C.UTF-8", "/here")
