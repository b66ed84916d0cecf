"""A proxy in front of an S3 server that does what networks and stores do on a bad day, and counts bytes."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Call:
    """One request as the proxy sees it; ``number`` counts from 0 over all requests."""

    number: int
    method: str
    path: str
    headers: dict[str, str]

    @property
    def key(self) -> str:
        """The path of the object, with its bucket, without the query."""
        return urlsplit(self.path).path.lstrip("/")


@dataclass(frozen=True)
class Fault:
    """What happens instead of, or on top of, the true answer."""

    status: int = 0  # answered at once, with this status
    cut_after: int = -1  # the connection ends after so many bytes of the body
    seconds: float = 0.0  # wait first
    before: Callable[[], None] | None = None  # something happens behind the client's back


Rule = Callable[[Call], Fault | None]


@dataclass
class Proxy:
    """``rule`` decides on every request; ``sent`` and ``received`` are bytes of bodies at the client."""

    endpoint: str
    upstream: str
    rule: Rule | None = None
    calls: list[Call] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self, rule: Rule | None = None) -> None:
        """Forget what was counted; another rule from now on."""
        self.rule, self.sent, self.received = rule, 0, 0
        self.calls.clear()

    def made(self, method: str, part: str = "") -> list[Call]:
        """The calls of a method whose path holds some text."""
        return [call for call in self.calls if call.method == method and part in call.path]


def first(count: int, fault: Fault, *, method: str = "GET", key: str = "") -> Rule:
    """The fault for the first so many calls of a method on keys that hold some text."""
    left = [count]

    def rule(call: Call) -> Fault | None:
        if call.method == method and key in call.key and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return rule


@contextmanager
def proxy_of(upstream: str) -> Iterator[Proxy]:
    """A proxy for the time of a block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = Proxy(endpoint=f"http://127.0.0.1:{server.server_address[1]}", upstream=upstream)
    server.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silence."""

    def _handle(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        with proxy.lock:
            call = Call(len(proxy.calls), self.command, self.path, dict(self.headers))
            proxy.calls.append(call)
            fault = (proxy.rule(call) if proxy.rule else None) or Fault()
        time.sleep(fault.seconds)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with proxy.lock:
            proxy.received += len(body)
        if fault.status:
            self._answer(fault.status, [], b"")
            return
        if fault.before:
            fault.before()
        self._forward(proxy, fault, body)

    def _forward(self, proxy: Proxy, fault: Fault, body: bytes) -> None:
        upstream = http.client.HTTPConnection(urlsplit(proxy.upstream).netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body=body or None, headers=headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        kept = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in ("transfer-encoding", "connection", "content-length")
        ]
        length = answer.getheader("Content-Length") or str(len(data))
        if 0 <= fault.cut_after < len(data):
            self._answer(answer.status, kept, data[: fault.cut_after], length=length)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._answer(answer.status, kept, data, length=length)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: str = "") -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        with proxy.lock:
            proxy.sent += len(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle
