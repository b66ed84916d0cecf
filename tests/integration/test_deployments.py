"""``prefect.yaml`` is accepted by a real server, and a deployment's form offers what its flow takes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from models.presets import preset_names
from tasks.services import prefect_server
from tasks.settings import prepare
from tests.environment import work_dir_at

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STAGES = ("build_vlir", "validate", "sft", "rgrpo", "evaluate", "promote")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with everything that the file declares."""
    with (
        work_dir_at(tmp_path_factory.mktemp("deployments") / "work") as work_dir,
        prefect_server(prepare(work_dir)) as server,
    ):
        assert server is not None
        server.wait()
        prefect("work-pool", "create", "local", "--type", "process")
        prefect("deploy", "--all")
        with httpx.Client(base_url=server.api_url, timeout=60) as client:
            yield client


def prefect(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=ROOT,
        env={**os.environ, "VLM_R3_HOME": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_deployment_is_accepted_with_a_form(api: httpx.Client) -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    found = api.post("/deployments/filter", json={}).json()
    by_entrypoint = {one["entrypoint"]: one for one in found}
    assert set(by_entrypoint) == {one["entrypoint"] for one in declared}
    assert {one["name"] for one in found} == {"tiny"}
    for one in found:
        assert one["tags"]
        assert one["global_concurrency_limit"]["limit"] == 1
    for name in ("pipeline", "retrain", *STAGES):
        fields = by_entrypoint[f"flows/{name}.py:{name}"]["parameter_openapi_schema"]["properties"]
        assert fields["preset"]["enum"] == preset_names()
        unexplained = [field for field, schema in fields.items() if not schema.get("description")]
        assert unexplained == [], name
    rollback = by_entrypoint["flows/rollback.py:rollback"]["parameter_openapi_schema"]["properties"]
    assert {name: bool(schema["description"]) for name, schema in rollback.items()} == {
        "version": True,
        "reason": True,
    }
    pipeline = by_entrypoint["flows/pipeline.py:pipeline"]
    assert pipeline["parameters"] == {"preset": "tiny"}
    assert set(pipeline["parameter_openapi_schema"]["properties"]) == {"preset", "overrides", "stages"}


def test_a_form_refuses_an_unknown_preset(api: httpx.Client) -> None:
    found = api.get("/deployments/name/promote/tiny").json()
    asked = {"parameters": {"preset": "tony"}}
    answer = api.post(f"/deployments/{found['id']}/create_flow_run", json=asked)
    assert answer.status_code == 409
    assert "'tony' is not one of" in answer.text
