"""`vlm-r3 serve` as a process of its own, for tests and benchmarks."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
START_SECONDS = 300
END_SECONDS = 60


@dataclass(frozen=True)
class Served:
    """A server that takes requests; ``url`` is without /v1."""

    url: str
    pid: int
    log: Path


@contextmanager
def served(model: str, *arguments: str, code: int = 0, **environment: str) -> Iterator[Served]:
    """The server until the block ends; it must then end with that exit code, and with nothing left of it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "serve", model, "--port", "0", *arguments],
                cwd=ROOT,
                env={**os.environ, "VLM_R3_WORK_DIR": folder, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Served(_wait(server, log), server.pid, log)
        finally:
            end(server, log, code)


def end(server: subprocess.Popen, log: Path, expected: int) -> None:
    """Ask a server to end, and see that it and its engine do."""
    children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        raise
    _, left = psutil.wait_procs(children, timeout=10)
    for process in left:
        process.kill()
    assert not left, f"{left} outlived the server"
    assert code == expected, f"The server ended with {code}:\n{log.read_text()[-3000:]}"


def _wait(server: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if found := re.search(r"^serving +(http\S+)/v1", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"The server is not up:\n{log.read_text()[-3000:]}")
