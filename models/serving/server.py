"""One server from start to end: the port first, then the engine, then requests, then nothing left."""

import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from models.engine import Engine
from models.errors import ConfigError, EngineError
from models.serving.app import build_app
from models.serving.config import ServingConfig

_BACKLOG = 2048


def serve(
    config: ServingConfig,
    open_engine: Callable[[], Engine],
    *,
    api_key: str = "",
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until asked to end (SIGTERM, Ctrl-C): then no new connections, what is in flight may end within
    ``limits.max_shutdown_seconds``, and the engine is closed.

    ``announce`` gets the server's base URL once it takes requests. Raises ConfigError when the address cannot
    be had, before the engine is opened, and EngineError when the engine fails.
    """
    failed = threading.Event()

    def end() -> None:
        failed.set()
        server.should_exit = True

    with listen(config.host, config.port) as listener, _interruptible():
        engine = open_engine()
        try:
            app = build_app(config, engine, api_key=api_key, on_failure=end)
            server = http_server(app, config, lambda: announce(url_of(listener)))
            # uvicorn ends gracefully and then raises again what it was asked by.
            with suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        finally:
            engine.close()
    if failed.is_set():
        raise EngineError("The engine failed, so the server has ended. Its log says why.")


def http_server(
    app: ASGIApp, config: ServingConfig, started: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """An HTTP server for the application; ``started`` is called when it takes connections."""
    return _Server(
        uvicorn.Config(
            app,
            access_log=False,
            backlog=_BACKLOG,
            lifespan="on",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.limits.max_shutdown_seconds),
            ws="none",
        ),
        started,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises ConfigError when it cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error}. Choose another --port; 0 takes a free one."
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The base URL of a bound socket; an address that means all of them is reached by the loopback."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means, also while the model loads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
