"""The team server in containers: valid by the specification, healthy, authenticated, without secrets."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tasks.team_services import LEASES

FILE = Path(__file__).parents[3] / "infra" / "compose.yaml"
TEXT = FILE.read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_it_is_a_compose_file() -> None:
    assert set(PyCompose.from_yaml(_merged(TEXT)).service_names()) == set(SERVICES)
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_yaml("services: {one: {imagee: busybox}}")


def test_every_password_comes_from_outside() -> None:
    for variable in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|AUTH_STRING|KEY)\w*)[^}]*\}", TEXT):
        uses = re.findall(rf"\$\{{{variable}([^}}]*)\}}", TEXT)
        assert any(use.startswith(":?") for use in uses), f"{variable} may be left out"
        assert not any(use.startswith(":-") for use in uses), f"{variable} has a default"
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY", variable):
                assert str(value).startswith("${"), (name, variable)


def test_servers_ask_who_is_there() -> None:
    assert "PREFECT_SERVER_API_AUTH_STRING" in SERVICES["prefect"]["environment"]
    assert "--app-name basic-auth" in SERVICES["mlflow"]["command"]
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_nothing_starts_before_what_it_needs_is_healthy() -> None:
    workers = {name for name in SERVICES if name.startswith("worker")}
    for name in set(SERVICES) - workers:  # the images of workers bring their own check
        assert SERVICES[name]["healthcheck"]["test"], name
    for name, service in SERVICES.items():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, (name, needed)


def test_the_server_knows_after_a_restart_who_holds_which_slot() -> None:
    server = SERVICES["prefect"]
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == LEASES
    assert server["volumes"] == ["prefect:/home/vlm/.prefect"]
    assert "prefect" in COMPOSE["volumes"]


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("latest", service["image"]), name


def test_builds_name_files_that_exist() -> None:
    builds = [service["build"] for service in SERVICES.values() if "build" in service]
    assert all((FILE.parent / build["context"] / build["dockerfile"]).is_file() for build in builds)
    assert (FILE.parent / "docker" / "databases.sql").is_file()


def _merged(text: str) -> str:
    """The same file with YAML's merge keys resolved, as every compose implementation does first."""
    return yaml.safe_dump(yaml.safe_load(text))
