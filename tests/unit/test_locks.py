"""A file that one process at a time holds, however that process ends."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import locks


def test_who_comes_second_gets_nothing_and_learns_who_was_first(tmp_path: Path) -> None:
    path = tmp_path / "there" / "lock"
    assert locks.holder(path) == "unknown"
    first = locks.take(path)
    assert first is not None
    assert locks.take(path) is None
    assert locks.holder(path) == f"process {os.getpid()} on {socket.gethostname()}"
    first.close()
    second = locks.take(path)
    assert second is not None
    second.close()


def test_a_child_that_inherited_it_holds_it_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    file = locks.take(path)
    assert file is not None
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], pass_fds=[file.fileno()]
    )
    file.close()
    try:
        assert locks.take(path) is None
    finally:
        child.kill()
        child.wait()
    deadline = time.monotonic() + 60
    while (again := locks.take(path)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert again is not None
    again.close()


def test_a_file_system_without_locks_gives_it_to_everybody_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        file = locks.take(tmp_path / "lock")
        assert file is not None
        file.close()
    assert "See to it that one process works there" in caplog.text


def test_an_error_that_is_not_about_locks_is_one(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError):
        locks.take(tmp_path / "lock")
