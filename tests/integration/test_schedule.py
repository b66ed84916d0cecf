"""A schedule of Prefect, and a message that there are new data, really create runs of retrain/tiny.

A whole server, scheduler and automations included, and no worker: what is created is not carried out.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tasks.services import free_port
from tasks.settings import prepare

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def api_url(work_dir: Path) -> Iterator[str]:
    prepare(work_dir)
    work_dir.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (work_dir.parent / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PREFECT_API_URL": url})
    os.environ["PREFECT_API_URL"] = url
    try:
        wait_for(lambda: is_well(url), "server")
        yield url
    finally:
        server.terminate()
        server.wait()


def is_well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(found: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.2)
    raise AssertionError(f"no {what} in {seconds} s")


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_schedule_and_announced_data_create_runs(api_url: str, work_dir: Path) -> None:
    said = run("flows.cli", "deploy", "--work-dir", str(work_dir))
    assert "automation   a new data-set version starts retrain\n" in said
    deployment = httpx.get(f"{api_url}/deployments/name/retrain/tiny").json()
    (schedule,) = deployment["schedules"]
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (wanted,) = [one["schedules"][0] for one in declared if one["entrypoint"] == "flows/retrain.py:retrain"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == (
        wanted["cron"],
        wanted["timezone"],
    )

    def runs(*, scheduled: bool) -> list[dict[str, Any]]:
        query = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        found = httpx.post(f"{api_url}/flow_runs/filter", json=query).json()
        return [one for one in found if one["auto_scheduled"] == scheduled]

    waiting = wait_for(lambda: runs(scheduled=True), "scheduled run")
    assert {one["state"]["type"] for one in waiting} == {"SCHEDULED"}
    assert all("T03:00:00" in one["expected_start_time"] for one in waiting)

    assert runs(scheduled=False) == []
    place = "s3://BUCKET/sources/mine"
    run("prefect", "event", "emit", "vlm-r3.dataset.ready", "--resource-id", place)
    (started,) = wait_for(lambda: runs(scheduled=False), "run that the event started")
    assert started["parameters"] == {"preset": "tiny"}
    assert set(started["tags"]) >= {"pipeline", "retrain", "tiny"}

    # Paused, the schedule makes no runs, and those that it had made are gone.
    run("prefect", "deployment", "schedule", "pause", "retrain/tiny", schedule["id"])
    wait_for(lambda: not runs(scheduled=True), "end of the scheduled runs")
