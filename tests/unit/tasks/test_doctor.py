"""What the doctor finds, and what it says to do."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks import doctor
from tasks.doctor import Finding, examine
from tasks.settings import Settings

Serve = Callable[[int, str], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of this machine that answer everything alike; gives their addresses."""
    servers = []

    def start(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def settings(work_dir: Path) -> Settings:
    return Settings.read()


def finding(name: str, settings: Settings, **changes: str) -> Finding:
    return next(found for found in examine(settings, **changes) if found.name == name)


def test_a_work_directory_that_cannot_be_written_is_ill(settings, tmp_path):
    assert finding("work directory", settings).is_well
    (tmp_path / "file").touch()
    found = finding("work directory", replace(settings, work_dir=tmp_path / "file"))
    assert not found.is_well
    assert "Not a directory" in found.found
    assert "--work-dir" in found.remedy


def test_the_embedded_default_needs_nothing_else(settings):
    found = {each.name: each for each in examine(settings)}
    assert all(found[name].is_well for name in ("python", "torch", "vLLM", "tracker", "Prefect server"))
    assert found["artifact store"].found == settings.artifacts
    assert all(each.remedy or each.is_well for each in found.values())


def test_servers_are_asked_for_their_health(settings, serve):
    well = replace(settings, tracking_uri=serve(200, "OK"), prefect_api_url=serve(200, "true") + "/api")
    assert finding("tracker", well) == Finding("tracker", f"{well.tracking_uri} answers", True, "")
    assert finding("Prefect server", well).is_well
    ill = replace(settings, tracking_uri=serve(503, "starting"))
    found = finding("tracker", ill)
    assert not found.is_well
    assert "answers with status 503" in found.found
    assert "MLFLOW_TRACKING_URI" in found.remedy


def test_a_password_in_an_address_is_not_shown(settings, serve):
    address = serve(200, "OK").replace("http://", "http://me:hidden@")
    assert "hidden" not in finding("tracker", replace(settings, tracking_uri=address)).found
    nobody = "http://me:hidden@127.0.0.1:9"
    assert "hidden" not in finding("tracker", replace(settings, tracking_uri=nobody)).found


def test_an_endpoint_names_its_models(settings, serve):
    models = json.dumps({"data": [{"id": "qwen"}, {"id": "vlm-r3"}]})
    found = finding("endpoint", settings, endpoint=serve(200, models) + "/v1")
    assert found.is_well
    assert found.found.endswith("/v1 serves qwen, vlm-r3")


@pytest.mark.parametrize("body", ["no json", "{}", '{"data": [1]}', "[]"])
def test_a_server_that_is_no_endpoint_is_told_apart(settings, serve, body):
    found = finding("endpoint", settings, endpoint=serve(200, body) + "/v1")
    assert not found.is_well
    assert "list of models" in found.found


def test_an_endpoint_that_does_not_listen_is_named(settings):
    found = finding("endpoint", settings, endpoint="http://127.0.0.1:9/v1")
    assert not found.is_well
    assert "http://127.0.0.1:9/v1" in found.found


def test_a_gpu_that_torch_cannot_use_is_an_ill_finding(settings, tmp_path, monkeypatch):
    """The driver's tool is found on the path: here a script that answers as it does."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint('NVIDIA H100, 81559 MiB, 570.1')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = finding("GPU", settings)
    assert found.found == "NVIDIA H100, 81559 MiB, 570.1"
    assert found.is_well is ("+cpu" not in doctor._version("torch"))
