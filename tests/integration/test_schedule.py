"""A schedule of Prefect, and a message that there are new data, really create runs of retrain/tiny.

A whole server, scheduler and automations included, and no worker: what is created is not carried out. The
commands are those of the README.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tasks.settings import prepare
from tests.environment import work_dir_at
from tests.prefect_api import prefect_api
from tests.readme import arguments_of
from tests.team_server import wait_for

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that the environment names."""
    with work_dir_at(tmp_path_factory.mktemp("schedule") / "work") as work_dir:
        prepare(work_dir)
        with prefect_api(work_dir / "prefect") as url, httpx.Client(base_url=url, timeout=60) as client:
            os.environ["PREFECT_API_URL"] = url
            yield client


@pytest.fixture(scope="module")
def deployed(api: httpx.Client) -> str:
    """What is said when everything is deployed."""
    return run("flows.cli", *arguments_of("vlm-r3 deploy"))


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


def test_schedule_and_announced_data_create_runs(api: httpx.Client, deployed: str) -> None:
    assert "automation   a new data-set version starts retrain\n" in deployed
    deployment = api.get("/deployments/name/retrain/tiny").json()
    (schedule,) = deployment["schedules"]

    def runs(by: str) -> list[dict[str, Any]]:
        query = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        found = api.post("/flow_runs/filter", json=query).json()
        return [one for one in found if (one["created_by"] or {"type": ""})["type"] == by]

    waiting = wait_for(lambda: runs("SCHEDULE"), "scheduled run")
    assert {one["state"]["type"] for one in waiting} == {"SCHEDULED"}
    # Monday at 3:00, as prefect.yaml says.
    due = [datetime.fromisoformat(one["expected_start_time"]) for one in waiting]
    assert {(each.weekday(), each.hour, each.minute) for each in due} == {(0, 3, 0)}

    assert runs("AUTOMATION") == []
    for command in (
        "prefect event emit vlm-r3.dataset.ready --resource-id s3://BUCKET/sources/NAME",
        "prefect deployment run retrain/tiny",
        "prefect deployment run pipeline/tiny",
    ):
        run("prefect", *arguments_of(command))
    listed = run("prefect", *arguments_of("prefect deployment schedule ls retrain/tiny"))
    assert schedule["id"] in listed.replace("\n", "")
    (started,) = wait_for(lambda: runs("AUTOMATION"), "run that the event started")
    (asked,) = wait_for(lambda: runs(""), "run that was asked for")
    for one in (started, asked):
        assert one["parameters"] == {"preset": "tiny"}
        assert set(one["tags"]) >= {"pipeline", "retrain", "tiny"}

    # Paused, the schedule makes no runs, and those that it had made are gone.
    run("prefect", "deployment", "schedule", "pause", "retrain/tiny", schedule["id"])
    wait_for(lambda: not runs("SCHEDULE"), "end of the scheduled runs")
    # Deployed again, now with the paper's presets on GPUs, it makes runs as before.
    said = run("flows.cli", *arguments_of("vlm-r3 deploy --gpu-pool gpu-k8s --home /app"))
    wait_for(lambda: runs("SCHEDULE"), "scheduled run after another deployment")
    assert "deployment   rgrpo/paper-7b\n" in said
    large = api.get("/deployments/name/rgrpo/paper-7b").json()
    assert large["work_pool_name"] == "gpu-k8s"
    assert large["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]["directory"] == "/app"


def test_a_run_that_is_stuck_is_cancelled_and_one_without_heartbeat_crashed(
    api: httpx.Client, deployed: str
) -> None:
    def wait_only(name: str, seconds: int) -> None:
        query = {"automations": {"name": {"any_": [name]}}}
        (found,) = api.post("/automations/filter", json=query).json()
        found["trigger"]["within"] = seconds
        changed = {key: found[key] for key in ("name", "description", "enabled", "trigger", "actions")}
        done = api.put(f"/automations/{found['id']}", json=changed)
        assert done.status_code == 204, done.text

    deployment = api.get("/deployments/name/rollback/tiny").json()["id"]

    def start() -> str:
        made = api.post(f"/deployments/{deployment}/create_flow_run", json={}).json()["id"]
        state = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
        api.post(f"/flow_runs/{made}/set_state", json=state).raise_for_status()
        return str(made)

    def state(of: str) -> str:
        return str(api.get(f"/flow_runs/{of}").json()["state_type"])

    # As declared, but for their patience: a week and a quarter of an hour.
    wait_only("a stuck run is cancelled", 10)
    stuck = start()
    wait_for(lambda: state(stuck) in ("CANCELLING", "CANCELLED"), "end of the stuck run", 300)
    wait_only("a stuck run is cancelled", 3600)
    wait_only("a run without a heartbeat is crashed", 10)
    lost = start()
    heartbeat = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{lost}"},
    }
    api.post("/events", json=[heartbeat]).raise_for_status()
    wait_for(lambda: state(lost) == "CRASHED", "end of the lost run", 300)
