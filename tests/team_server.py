"""A team server of real services (PostgreSQL, S3, Prefect with a worker, MLflow), as its users see it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.readme import arguments_of, documented

ROOT = Path(__file__).parents[1]
# As small as it gets: this is about the machinery.
SMALL = [
    *("controls=false", "engine.kind=transformers", "vlir.num_questions=60", "validation.min_records=5"),
    *(
        "rgrpo.num_steps=1",
        "promotion.min_gain=-1",
        "promotion.max_kind_loss=1",
        "promotion.max_protocol_error_rate=1",
    ),
]


@dataclass(frozen=True)
class Team:
    """A running team server, and how its users call it."""

    work_dir: Path
    values: dict[str, str]

    def environment(self) -> dict[str, str]:
        """That of a user of the server: nothing that other tests have set."""
        foreign = ("VLM_R3_", "PREFECT_", "MLFLOW_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, **self.values}

    def run(self, *command: str, **values: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**self.environment(), **values},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """What Prefect's server answers."""
        user, _, password = self.values["PREFECT_API_AUTH_STRING"].partition(":")
        url = f"{self.values['PREFECT_API_URL']}{path}"
        answer = httpx.request(method, url, json=body, auth=(user, password), timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Ask for a run of a deployment; its id."""
        found = self.api("GET", f"/deployments/name/{deployment}")["id"]
        made = self.api("POST", f"/deployments/{found}/create_flow_run", {"parameters": parameters})
        return made["id"]

    def services(self) -> Any:
        """What the keeper of the services says of them."""
        return json.loads((self.work_dir / "services" / "state.json").read_text())

    def is_up(self) -> bool:
        """Whether Prefect's server answers."""
        try:
            return bool(self.api("GET", "/health"))
        except httpx.HTTPError:
            return False

    def state(self, run: str) -> str:
        """The type of a run's state."""
        return self.api("GET", f"/flow_runs/{run}")["state_type"]

    def state_name(self, run: str) -> str:
        """A run's state as Prefect's pages show it."""
        return self.api("GET", f"/flow_runs/{run}")["state_name"]

    def logs(self, run: str) -> str:
        """What a run has logged so far."""
        query = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(line["message"] for line in self.api("POST", "/logs/filter", query))


def wait_for(found: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.5)
    raise AssertionError(f"no {what} in {seconds} s")


def processes(work_dir: Path) -> list[psutil.Process]:
    """Every process that belongs to a work directory, by its arguments or its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(work_dir) in text for text in texts):
            found.append(process)
    return found


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """Where messages can be sent, and those that were, for the time of a block."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()


def _sourced(folder: Path) -> dict[str, str]:
    """What the README's way of reading the environment file adds to a shell's environment there."""
    read = documented("set -a; . .vlm-r3/services/env; set +a", {".vlm-r3/services/env": "work/services/env"})
    command = ["env", "-i", "bash", "-c", f"{read}; env -0"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in said.split("\0") if line)
    return {name: value for name, value in found.items() if name not in ("PWD", "SHLVL", "_")}


@contextmanager
def team_server(webhook: str) -> Iterator[Team]:
    """A team server with everything deployed, started as a user starts it; ``webhook`` gets its messages."""
    # Not pytest's own folder: where tests run as root, PostgreSQL's user must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="vlm-r3-team-"))
    folder.chmod(0o711)
    work_dir = folder / "work"
    bare = Team(work_dir, {"VLM_R3_WORK_DIR": str(work_dir)})
    try:
        said = bare.run("flows.cli", *arguments_of("vlm-r3 services up"))
        assert said.count("ok ") == 5, said
        started = Team(work_dir, _sourced(folder))
        started.run("tests.integration.save_webhook", webhook)
        said = started.run("flows.cli", "deploy", "--notify", "custom-webhook/listener")
        assert "automation   a failed gate notifies\n" in said
        assert "left out, no block" not in said
        yield started
    finally:
        bare.run("flows.cli", "services", "down")
        left = processes(work_dir)
        shutil.rmtree(folder)
        assert left == []
