"""A Prefect server as a team has one, scheduler and automations included, and without a worker."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tasks.ports import free_port
from tests.team_server import wait_for


@contextmanager
def prefect_api(home: Path) -> Iterator[str]:
    """The address of a server that runs while the block does; its database is ``home/prefect.db``."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: _is_well(url), "server")
        yield url
    finally:
        server.terminate()
        server.wait()


def _is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
