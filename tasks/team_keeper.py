"""Starting, watching and ending the services of a team server.

One process, the keeper (``python -m tasks.team_keeper HOME``), starts every service under the supervisor of
:mod:`tasks.launch`, starts again what dies, and writes ``WORK_DIR/services/state.json``. However it
ends, so do the services: ``down`` ends the keeper and nothing else.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
from pydantic import BaseModel, ConfigDict

from models.errors import LaunchError, VLMR3Error
from models.rundir import write_atomically
from tasks import launch
from tasks.settings import Settings
from tasks.team_config import TeamConfig, env_text, services_folder, write_private
from tasks.team_services import Service, prepare_postgres, services_of

_START_SECONDS = 300.0  # of one service
_STOP_SECONDS = 120.0
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 30.0


class State(BaseModel):
    """What the keeper says of itself and of the services that it started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float
    phase: str = "starting"
    reason: str = ""
    pids: dict[str, int] = {}
    starts: dict[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> "State | None":
        """That of the keeper that runs now; None when none does."""
        path = folder / "state.json"
        if not path.exists():
            return None
        state = cls.model_validate_json(path.read_text())
        try:
            keeper = psutil.Process(state.pid)
            is_same = abs(keeper.create_time() - state.created) < 1.0
            has_ended = keeper.status() == psutil.STATUS_ZOMBIE  # we started it, and nobody has asked since
        except psutil.NoSuchProcess:
            return None
        return state if is_same and not has_ended else None


class Found(BaseModel):
    """A service as it is now."""

    name: str
    url: str
    pid: int
    starts: int
    is_healthy: bool


def up(settings: Settings, home: Path) -> None:
    """Start the services, and return when all are healthy; does nothing when they are.

    Raises LaunchError when one does not start.
    """
    folder = services_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user may pass through
    log = folder / "keeper.log"
    if State.read(folder) is None:
        (folder / "state.json").unlink(missing_ok=True)
        launch.detach([sys.executable, "-m", "tasks.team_keeper", str(home)], log=log, folder=home)
    deadline = time.monotonic() + 3 * _START_SECONDS
    while time.monotonic() < deadline:
        state = State.read(folder)
        if state and state.phase == "ready":
            return
        if state is None and (folder / "state.json").exists():
            break
        time.sleep(_POLL_SECONDS)
    raise LaunchError(f"The services did not start. The end of {log}:\n{launch.end_of(log)}")


def down(settings: Settings) -> bool:
    """End what :func:`up` started. Returns whether there was anything. Raises LaunchError when it stays."""
    state = State.read(services_folder(settings))
    if state is None:
        return False
    keeper = psutil.Process(state.pid)
    keeper.terminate()
    try:
        keeper.wait(_STOP_SECONDS)
    except psutil.TimeoutExpired as error:
        raise LaunchError(f"The services do not end: process {state.pid} is still there.") from error
    return True


def status(settings: Settings, home: Path) -> list[Found]:
    """Every service as it is now; none when the keeper does not run."""
    folder = services_folder(settings)
    state = State.read(folder)
    if state is None:
        return []
    return [
        Found(
            name=service.name,
            url=service.url,
            pid=state.pids.get(service.name, 0),
            starts=state.starts.get(service.name, 0),
            is_healthy=service.name in state.pids and service.is_healthy(),
        )
        for service in _all(services_of(TeamConfig.keep(folder), settings, home=home))
    ]


class Keeper:
    """The services while they run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, launch.Process] = {}
        self._starts: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self.say("starting")

    def say(self, phase: str, reason: str = "") -> None:
        """Write how things are."""
        state = State(
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            phase=phase,
            reason=reason,
            pids={name: process.pid for name, process in self._running.items()},
            starts=self._starts,
        )
        write_atomically(self._folder / "state.json", state.model_dump_json(indent=1))

    def start(self, services: Sequence[Service]) -> None:
        """Start services that do not need each other, and wait until all are healthy. Raises LaunchError."""
        for service in services:
            self._start(service)
        deadline = time.monotonic() + _START_SECONDS
        waiting = list(services)
        while waiting:
            for service in waiting:
                if self._running[service.name].poll() is not None or time.monotonic() > deadline:
                    log = self._log(service)
                    raise LaunchError(f"{service.name} did not start. Its log ({log}):\n{launch.end_of(log)}")
            waiting = [service for service in waiting if not service.is_healthy()]
            time.sleep(_POLL_SECONDS)

    def watch(self, services: Sequence[Service]) -> None:
        """Start again what ends, each time after a longer pause; until this process is told to end."""
        while True:
            for service in services:
                if self._running[service.name].poll() is None:
                    continue
                pause = min(2.0 ** self._starts[service.name], _LONGEST_PAUSE_SECONDS)
                if time.monotonic() > self._due.setdefault(service.name, time.monotonic() + pause):
                    del self._due[service.name]
                    self._start(service)
                    self.say("ready")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End all, the last that was started first."""
        for process in reversed(self._running.values()):
            launch.stop(process, grace_seconds=_GRACE_SECONDS)

    def _start(self, service: Service) -> None:
        self._starts[service.name] = self._starts.get(service.name, 0) + 1
        with self._log(service).open("ab") as output:
            self._running[service.name] = launch.start(
                service.command,
                output=output,
                environment=service.environment,
                grace_seconds=_GRACE_SECONDS,
            )
        self.say("starting")

    def _log(self, service: Service) -> Path:
        return self._folder / f"{service.name}.log"


def keep(settings: Settings, home: Path) -> None:
    """Run the services until this process is told to end."""
    folder = services_folder(settings)
    config = TeamConfig.keep(folder)
    keeper = Keeper(folder)
    try:
        prepare_postgres(config, settings)
        write_private(folder / "env", env_text(config.client_environment(settings, home)))
        waves = services_of(config, settings, home=home)
        for wave in waves:
            keeper.start(wave)
        keeper.say("ready")
        keeper.watch(_all(waves))
    finally:
        keeper.stop()


def _all(waves: Sequence[Sequence[Service]]) -> list[Service]:
    return [service for wave in waves for service in wave]


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the services are being ended
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    found = Settings.read()
    try:
        keep(found, Path(sys.argv[1]))
    except VLMR3Error as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)
