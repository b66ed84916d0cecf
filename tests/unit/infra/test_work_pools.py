"""The work pools: what Prefect renders of the job templates is what Kubernetes takes."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

POOLS = Path(__file__).parents[3] / "infra" / "work_pools"
VALUES = {
    "image": "registry.example/vlm-r3@sha256:" + "0" * 64,
    "gpu_count": 4,
    "num_nodes": 2,
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "secret_name": "team-secret",
    "env": {"VLM_R3_RETRIES": "2"},
}
KUBERNETES = "1.37"
# Rendering takes a client for blocks that a template may name. Ours name none, so nothing is asked.
NO_SERVER = PrefectClient("http://127.0.0.1:9/api")


def template(name: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    async def render() -> dict[str, Any]:
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
            base_job_template=template("gpu-k8s"), values=VALUES, client=NO_SERVER
        )
        configuration.prepare_for_flow_run(FlowRun(id=uuid4(), name="brave-run", flow_id=uuid4()))
        manifest = configuration.job_manifest
        for misplaced in ("completions", "parallelism"):
            # prefect-kubernetes 0.7 refuses a template without them; Kubernetes drops unknown fields.
            del manifest["spec"]["template"]["spec"][misplaced]
        return manifest

    return asyncio.run(render())


def test_every_pool_has_a_template_of_its_own() -> None:
    pools = yaml.safe_load((POOLS / "pools.yaml").read_text())["pools"]
    assert {pool["name"] for pool in pools} == {path.stem for path in POOLS.glob("*.json")}
    assert {pool["name"]: pool["type"] for pool in pools} == {
        "local": "process",
        "gpu": "process",
        "gpu-k8s": "kubernetes",
    }


@pytest.mark.parametrize("name", ["local", "gpu", "gpu-k8s"])
def test_the_form_of_a_pool_is_a_schema_that_explains_itself(name: str) -> None:
    variables = template(name)["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    for field, schema in variables["properties"].items():
        assert schema.get("description"), field


def test_kubernetes_takes_the_job(job: dict[str, Any]) -> None:
    jsonschema.validate(VALUES, template("gpu-k8s")["variables"])
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["resourcez"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES, strict=True)
    del job["spec"]["template"]["spec"]["containers"][0]["resourcez"]


def test_a_job_gets_gpus_shared_memory_and_secrets_by_reference(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["nodeSelector"] == VALUES["node_selector"]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    shared = {volume["name"]: volume for volume in pod["volumes"]}["shm"]["emptyDir"]
    assert shared == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert container["envFrom"] == [{"secretRef": {"name": "team-secret"}}]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_several_nodes_are_an_indexed_job_behind_a_headless_service(job: dict[str, Any]) -> None:
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    environment = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert environment["VLM_R3_NODES"]["value"] == "2@$(VLM_R3_JOB)-0.vlm-r3-nodes:29400"
    assert environment["VLM_R3_RETRIES"]["value"] == "2"
    names = [one["name"] for one in pod["containers"][0]["env"]]
    assert names.index("VLM_R3_JOB") < names.index("VLM_R3_NODES"), "Kubernetes expands what came before"
    assert pod["containers"][0]["command"] == ["python", "-m", "tasks.node"]
    runs = yaml.safe_load_all((POOLS.parent / "k8s" / "runs.yaml").read_text())
    service = next(one for one in runs if one["kind"] == "Service")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize("name", ["local", "gpu"])
def test_a_process_is_started_from_the_template(name: str) -> None:
    configuration = asyncio.run(
        ProcessJobConfiguration.from_template_and_values(
            base_job_template=template(name), values={"env": {"A": "b"}}, client=NO_SERVER
        )
    )
    assert configuration.env == {"PYTHONUNBUFFERED": "1", "A": "b"}
