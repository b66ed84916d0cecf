"""Kubernetes manifests: valid by schema, secrets by reference, nobody is root, everything is probed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tasks.team_services import LEASES

FOLDER = Path(__file__).parents[3] / "infra" / "k8s"
KUBERNETES = "1.37"


def objects() -> list[dict[str, Any]]:
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def name_of(one: dict[str, Any]) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def workloads() -> list[dict[str, Any]]:
    return [one for one in objects() if one["kind"] in ("Deployment", "StatefulSet")]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for one in workloads():
        pod = one["spec"]["template"]["spec"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield f"{name_of(one)}/{container['name']}", container


@pytest.mark.parametrize("one", objects(), ids=name_of)
def test_it_is_what_kubernetes_takes(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "vlm-r3"


def test_no_secret_is_in_a_file() -> None:
    assert [name_of(one) for one in objects() if one["kind"] == "Secret"] == []
    for name, container in containers():
        for variable in container.get("env", []):
            looks_secret = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "AUTH_STRING"))
            assert not looks_secret or "secretKeyRef" in variable["valueFrom"], (name, variable["name"])


@pytest.mark.parametrize("one", workloads(), ids=name_of)
def test_nobody_is_root(one: dict[str, Any]) -> None:
    pod = one["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("one", workloads(), ids=name_of)
def test_its_health_is_looked_at_and_its_memory_bounded(one: dict[str, Any]) -> None:
    for container in one["spec"]["template"]["spec"]["containers"]:
        assert "livenessProbe" in container
        assert "memory" in container["resources"]["limits"]
        assert container["image"].rpartition(":")[2] not in ("latest", container["image"])


def test_the_server_knows_after_a_restart_who_holds_which_slot() -> None:
    (server,) = (container for name, container in containers() if name == "Deployment/prefect/prefect")
    assert {"name": "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "value": LEASES} in server["env"]
    assert {"name": "home", "mountPath": "/home/vlm/.prefect"} in server["volumeMounts"]


def test_services_and_claims_point_to_what_exists() -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads()]
    labels.append({"app.kubernetes.io/name": "vlm-r3-run"})  # the pods of the work pool's jobs
    claims = {one["metadata"]["name"] for one in objects() if one["kind"] == "PersistentVolumeClaim"}
    accounts = {one["metadata"]["name"] for one in objects() if one["kind"] == "ServiceAccount"}
    for one in objects():
        if one["kind"] == "Service":
            selector = one["spec"]["selector"]
            assert any(selector.items() <= each.items() for each in labels), name_of(one)
    for one in workloads():
        pod = one["spec"]["template"]["spec"]
        assert pod.get("serviceAccountName", "default") in {*accounts, "default"}
        used = [each.get("persistentVolumeClaim", {}) for each in pod.get("volumes", [])]
        assert {claim["claimName"] for claim in used if claim} <= claims
