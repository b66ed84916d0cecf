"""The factory on a team server of real services: PostgreSQL, S3, Prefect with a worker, MLflow."""

import json
import re
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from tests.team_server import SMALL, Team, processes, wait_for

# Minutes: five servers, a pipeline of eight runs.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

STAGES = {"build-vlir", "validate", "sft", "rgrpo", "evaluate", "promote"}


def test_nobody_is_let_in_without_a_password(team: Team) -> None:
    secrets = [value for name, value in team.values.items() if "PASSWORD" in name or "SECRET" in name]
    assert len(secrets) == 2
    assert httpx.post(f"{team.values['PREFECT_API_URL']}/flows/filter").status_code == 401
    tracking = f"{team.values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(tracking).status_code == 401
    assert httpx.get(f"{team.values['AWS_ENDPOINT_URL']}/artifacts/none").status_code == 403


def test_passwords_are_in_private_files_only(team: Team) -> None:
    folder = team.work_dir / "services"
    kept = json.loads((folder / "services.json").read_text())
    secrets = [value for name, value in kept.items() if name != "ports"]
    private = {"services.json", "env", "mlflow-auth.ini"}
    assert {(folder / name).stat().st_mode & 0o777 for name in private} == {0o600}
    for path in [*folder.glob("*.log"), *folder.glob("*.json")]:
        if path.name not in private:
            assert not [secret for secret in secrets if secret in path.read_text(errors="replace")], path
    arguments = [" ".join(process.cmdline()) for process in processes(team.work_dir)]
    assert not [text for text in arguments if any(secret in text for secret in secrets)]


def test_up_again_changes_nothing_and_what_dies_is_started_again(team: Team) -> None:
    before = (team.work_dir / "services" / "state.json").read_text()
    team.run("flows.cli", "services", "up")
    assert (team.work_dir / "services" / "state.json").read_text() == before
    supervisor = json.loads(before)["pids"]["s3"]
    psutil.Process(supervisor).children()[0].kill()

    def is_back() -> bool:
        state = json.loads((team.work_dir / "services" / "state.json").read_text())
        return state["starts"]["s3"] == 2 and state["pids"]["s3"] != supervisor

    wait_for(is_back, "second start", 60)
    health = f"{team.values['AWS_ENDPOINT_URL']}/healthz"
    wait_for(lambda: _status(health) == 200, "healthy S3 server", 60)


def test_a_cron_schedule_creates_runs(team: Team) -> None:
    deployment = team.api("GET", "/deployments/name/promote/tiny")["id"]
    schedule = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}
    (made,) = team.api("POST", f"/deployments/{deployment}/schedules", [schedule])
    query = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    try:
        wait_for(lambda: team.api("POST", "/flow_runs/filter", query), "scheduled run", 120)
    finally:
        team.api("DELETE", f"/deployments/{deployment}/schedules/{made['id']}")


def test_a_failed_gate_notifies(team: Team, messages: tuple[str, list[str]]) -> None:
    _, received = messages
    team.run("tests.integration.refuse", "promote", "worse than the champion")
    wait_for(lambda: received, "notification", 60)
    assert "the gate promote said no" in received[0]
    assert "worse than the champion" in received[0]


def test_cancelling_a_run_ends_every_child_and_its_log_is_seen_while_it_runs(team: Team) -> None:
    before = {process.pid for process in processes(team.work_dir)}
    overrides = [*SMALL, "sft.num_epochs=1000", "seed=7"]
    run = team.start("sft/tiny", {"preset": "tiny-smoke", "overrides": overrides})
    wait_for(lambda: re.search(r"sft: \d+/\d+ .*loss", team.logs(run)), "progress of the child")
    assert "samples, from step 0 of" in team.logs(run), "what the child itself writes"
    assert team.state(run) == "RUNNING"
    running = [process for process in processes(team.work_dir) if process.pid not in before]
    ranks = [process for process in running if "models.sft.train" in process.cmdline()]
    assert len(ranks) >= 3, "a launcher and two ranks"
    team.api("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: team.state(run) == "CANCELLED", "cancelled run", 90)
    wait_for(lambda: not any(process.is_running() for process in running), "end of all processes", 30)
    assert {process.pid for process in processes(team.work_dir)} <= before


def test_the_pipeline_runs_on_deployments_and_its_model_is_fetched_and_asked(
    team: Team, tmp_path: Path
) -> None:
    parameters = {"preset": "tiny-smoke", "stages": "tiny", "overrides": SMALL}
    said = team.run("prefect", "deployment", "run", "pipeline/tiny", "--params", json.dumps(parameters))
    found = re.search(r"UUID: (\S+)", said)
    assert found is not None, said
    run = found[1]
    wait_for(lambda: team.state(run) in ("COMPLETED", "FAILED", "CRASHED"), "end of the pipeline", 1500)
    assert team.state(run) == "COMPLETED", team.logs(run)
    children = team.api("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    flows = {one["id"]: one["name"] for one in team.api("POST", "/flows/filter", {})}
    assert {flows[child["flow_id"]] for child in children} == STAGES
    assert all(child["work_pool_name"] == "local" for child in children)

    (entry,) = [line for line in team.run("flows.cli", "history").splitlines() if "promoted" in line]
    assert "1" in entry

    # Elsewhere: another work directory, and the same servers.
    elsewhere = {"VLM_R3_WORK_DIR": str(tmp_path / "elsewhere")}
    model = tmp_path / "model"
    said = team.run("flows.cli", "fetch", "models:/vlm-r3@champion", str(model), **elsewhere)
    assert said.startswith("s3://artifacts/vlm-r3/rgrpo/")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (112, 112), "white").save(picture)
    ask = ("ask", str(picture), "what code is on the red card?", "--model", str(model), "--json")
    small = ("--preset", "tiny-smoke", "--set", "engine.kind=transformers")
    seen = ("--picture", str(tmp_path / "seen.png"))
    assert json.loads(team.run("flows.cli", *ask, *small, *seen, **elsewhere))["model"] == str(model)


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0
