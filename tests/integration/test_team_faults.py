"""Parts of a team server die in the middle of a run: it goes on, or the next one goes on from there."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from models.rundir import RunDir
from tests.team_server import ROOT, SMALL, Team, processes, wait_for

# Minutes: five servers, and runs that see them die.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def kill(team: Team, service: str) -> int:
    """End a service as a crash would; its keeper starts it again. How often it was started so far."""
    state = team.services()
    psutil.Process(state["pids"][service]).children()[0].kill()
    return state["starts"][service]


def ranks(team: Team) -> dict[int, str]:
    """The processes of training by id, with the run directory that they write."""
    found = {}
    for process in processes(team.work_dir):
        command = process.cmdline()
        if "models.sft.train" in command and "supervisor.py" not in " ".join(command):
            found[process.pid] = command[-1]
    return found


def run_of_stage(team: Team, flow: str) -> Any:
    """The newest flow run of a stage."""
    query = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    return next(iter(team.api("POST", "/flow_runs/filter", query)), None)


def test_servers_that_restart_in_mid_run_cost_nothing(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*SMALL, "seed=3", "sft.checkpoint_every=1000000"]
    asking = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.ask_stage", "60", *overrides],
        cwd=ROOT,
        env=team.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: asking.poll() is not None or len(ranks(team)) >= 3, "launcher and two ranks")
        assert asking.poll() is None, asking.stdout.read() if asking.stdout else ""
        before = ranks(team)
        run = run_of_stage(team, "sft")
        wait_for(lambda: re.search(r"sft: .*loss", team.logs(run["id"])), "progress")
        killed = {service: kill(team, service) for service in ("mlflow", "prefect")}
        for service, count in killed.items():
            wait_for(lambda s=service, c=count: team.services()["starts"][s] > c, f"second {service}", 60)
        wait_for(team.is_up, "Prefect's server", 120)
        assert ranks(team) == before, "the ranks went on"
        # The slot of the deployment is still the run's: it would be cancelled when it renews its lease.
        lease = team.api("GET", f"/flow_runs/{run['id']}")["state"]["state_details"][
            "deployment_concurrency_lease_id"
        ]
        team.api("POST", f"/v2/concurrency_limits/leases/{lease}/renew", {"lease_duration": 300})
        said, _ = asking.communicate(timeout=300)
    finally:
        asking.kill()
    assert asking.returncode == 0, said
    assert said.splitlines()[-1].startswith("s3://artifacts/vlm-r3/sft/")
    assert team.state(run["id"]) == "COMPLETED"

    (folder,) = set(before.values())
    written = {
        line["step"]: line["sft/loss"] for line in RunDir(Path(folder)).metrics() if "sft/loss" in line
    }
    for name, value in team.values.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(tracking_uri=team.values["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("vlm-r3")
    (tracked, *_) = client.search_runs(
        [experiment.experiment_id], "tags.stage = 'sft'", order_by=["attributes.start_time DESC"]
    )
    history = client.get_metric_history(tracked.info.run_id, "sft/loss")
    assert {point.step: point.value for point in history} == pytest.approx(written)
    assert tracked.info.status == "FINISHED"


def test_a_run_whose_worker_was_killed_goes_on_from_its_checkpoint(team: Team) -> None:
    overrides = [*SMALL, "seed=3", "sft.checkpoint_every=5", "sft.num_epochs=15"]
    parameters = {"preset": "tiny-smoke", "overrides": overrides}
    run = team.start("sft/tiny", parameters)
    wait_for(lambda: len(ranks(team)) >= 3, "launcher and two ranks")
    (folder,) = (Path(path) for path in set(ranks(team).values()))
    wait_for(lambda: list((folder / "checkpoints").glob("step-*[0-9]")), "checkpoint")
    worker = psutil.Process(team.services()["pids"]["worker"]).children()[0]
    engines = [process for process in worker.children() if "prefect.engine" in process.cmdline()]
    assert engines
    for process in (worker, *engines):
        process.kill()
    again = team.start("sft/tiny", parameters)
    # The slot of the dead run is still taken: two runs never write one directory.
    wait_for(lambda: team.state_name(again) == "AwaitingConcurrencySlot", "run that waits", 120)
    wait_for(lambda: not ranks(team), "end of the ranks", 60)
    assert team.state(run) == "RUNNING"
    # What Prefect's page, or the automation after 15 minutes without a heartbeat, does with it.
    lost = {"state": {"type": "CRASHED", "message": "killed"}, "force": True}
    team.api("POST", f"/flow_runs/{run}/set_state", lost)
    wait_for(lambda: team.state(again) in ("COMPLETED", "FAILED", "CRASHED"), "end of the second run")
    assert team.state(again) == "COMPLETED", team.logs(again)
    resumed = re.search(r"resumed from \S+/step-(\d+)", team.logs(again))
    assert resumed is not None
    steps = [line["step"] for line in RunDir(folder).metrics() if "sft/loss" in line]
    assert steps.count(int(resumed[1])) == 1, "it was not taken again"
    assert set(steps) == set(range(1, max(steps) + 1))
    assert team.services()["starts"]["worker"] > 1
