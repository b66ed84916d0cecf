"""Fixtures that every test may use. Unit tests have no network: only sockets of this machine connect."""

import socket
from pathlib import Path
from typing import Any

import pytest

_UNIT = Path(__file__).parent / "unit"
_LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine, in unit tests."""
    if not request.path.is_relative_to(_UNIT):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        is_remote = self.family in (socket.AF_INET, socket.AF_INET6) and not address[0].startswith(_LOCAL)
        if is_remote:
            raise OSError(f"A unit test tried to connect to {address}; unit tests use no network.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty work directory of a run, named by the environment as the command line would do."""
    for name in ("VLM_R3_ARTIFACTS", "VLM_R3_MAX_CHILDREN", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    monkeypatch.setenv("VLM_R3_WORK_DIR", str(folder))
    return folder
