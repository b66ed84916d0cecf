"""A Prefect server for the time of one run, when none is configured.

It listens on a free port of this machine only, keeps its database in the work directory, and ends with the
run whatever happens to it (:mod:`tasks.launch`).
"""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from models import locks
from models.errors import ConfigError, LaunchError
from tasks import launch
from tasks.ports import free_port
from tasks.settings import Settings, child_environment, prepare

_STARTUP_SECONDS = 120.0
_DRAIN_SECONDS = 10.0


class PrefectServer:
    """A server that is starting; :meth:`wait` returns once it answers."""

    def __init__(self, settings: Settings) -> None:
        port = free_port()
        self.api_url = f"http://127.0.0.1:{port}/api"
        self._log = settings.work_dir / "prefect" / "server.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        environment = child_environment(num_threads=1, bin_folder=Path(sys.executable).parent) | {
            "PREFECT_UI_ENABLED": "0",
            # What Prefect sets for the server it would start itself: no scheduler, no late-run services.
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        with self._log.open("wb") as output:
            self.process = launch.start(_server_command(port), output=output, environment=environment)

    def wait(self) -> None:
        """Return when the server answers. Raises LaunchError when it ends or stays silent."""
        deadline = time.monotonic() + _STARTUP_SECONDS
        with httpx.Client() as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if client.get(f"{self.api_url}/health").status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                time.sleep(0.1)
        raise LaunchError(f"Prefect's server did not start. Its log: {self._log}")


@contextmanager
def prefect_server(settings: Settings) -> Iterator[PrefectServer | None]:
    """The configured server (None), or one of our own, starting, for the time of a block.

    Must be entered before Prefect is imported: it reads the server's address once.
    """
    if settings.prefect_api_url:
        yield None
        return
    server = PrefectServer(settings)
    prepare(prefect_api_url=server.api_url)
    try:
        yield server
    finally:
        _drain()
        launch.stop(server.process, grace_seconds=2.0)
        prepare(prefect_api_url="")


@contextmanager
def sole_use(settings: Settings) -> Iterator[None]:
    """The work directory for one run alone.

    Raises ConfigError when another run is using it, and where nothing can be written.
    """
    path = settings.work_dir / "lock"
    try:
        file = locks.take(path)
    except OSError as error:
        raise ConfigError(
            f"The work directory {settings.work_dir} cannot be written to: {error.strerror}. Name another "
            "one by --work-dir or VLM_R3_WORK_DIR."
        ) from error
    if file is None:
        raise ConfigError(
            f"Another run ({locks.holder(path)}) is using {settings.work_dir}. Wait for it, or give this one "
            "a work directory of its own: --work-dir."
        )
    with file:
        yield


def _drain() -> None:
    """Deliver the logs and events that Prefect still holds, while there is a server to take them."""
    if "prefect.flow_engine" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=_DRAIN_SECONDS)
        EventsWorker.drain_all(timeout=_DRAIN_SECONDS)


def _server_command(port: int) -> list[str]:
    spec = importlib.util.find_spec("prefect")
    if spec is None or spec.origin is None:
        raise LaunchError("Prefect is not installed. Install the project's environment: make env")
    app = ["--app-dir", str(Path(spec.origin).parent), "--factory", "prefect.server.api.server:create_app"]
    place = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "uvicorn", *app, *place, "--log-level", "error", "--lifespan", "on"]
