"""A real MLflow server on this machine that a test can stop and start again at the same address."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tasks.ports import free_port

_START_SECONDS = 300.0


class MLflowServer:
    """A server on a SQLite database; :meth:`start` after :meth:`stop` keeps address and content."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self.folder = folder
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        places = [
            *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
            *("--artifacts-destination", (self.folder / "artifacts").as_uri()),
            *("--host", "127.0.0.1", "--port", str(self._port)),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *places],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_up():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def stop(self) -> None:
        """End it; nothing listens there any more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MLflowServer]:
    """A server for the time of a block."""
    server = MLflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
