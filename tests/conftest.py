"""Fixtures that every test may use. Unit tests have no network: only sockets of this machine connect."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.environment import work_dir_at

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

_UNIT = Path(__file__).parent / "unit"
_LOCAL = ("127.", "::1", "localhost")
# Files whose tests share what takes a minute to make (see integration/conftest.py): one worker runs them all.
_TOGETHER = {
    "tests/integration/test_retrain.py": "tests/integration/test_readme.py",
    "tests/integration/test_team_server.py": "tests/integration/test_team_faults.py",
}

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests that interrupt a child
# would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine fails no test that draws its examples: how long one takes is not measured.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadFileScheduling":
    """Give each worker whole files, in their order: the unit tests come last and even out what is left."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _TOGETHER.get(file, file)

    config.option.loadscopereorder = False  # it would begin with the files of most tests, not the longest
    return Files(config, log)


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
def work_dir(tmp_path: Path) -> Iterator[Path]:
    """An empty work directory of runs. Whatever the test changes in the environment is undone."""
    with work_dir_at(tmp_path / "work") as folder:
        yield folder
