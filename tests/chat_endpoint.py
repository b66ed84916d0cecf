"""A chat endpoint on this machine that answers, fails and stalls as a test wants it to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from models.config import EngineConfig

# (status, body) of one reply, perhaps with headers; a body that is a dictionary is sent as JSON.
Reply = tuple[int, dict | str] | tuple[int, dict | str, dict[str, str]]


def completion(text, finish_reason="stop", **choice) -> dict:
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish_reason, **choice}]}


@dataclass
class FakeEndpoint:
    """``answer`` gets a request's body and number (from 1); ``bodies`` and ``headers`` are what was sent."""

    answer: Callable[[dict, int], Reply] = lambda body, number: (200, completion("hello"))
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    url: str = ""
    models: dict[str, str] = field(default_factory=dict)  # served models and their owners

    def config(self, **changes) -> EngineConfig:
        settings = {"backoff_seconds": 0.001, "timeout_seconds": 5, "max_tries": 3, "max_num_seqs": 8}
        return EngineConfig(kind="http", endpoint=self.url, served_model="m", **(settings | changes))


@contextmanager
def serving() -> Iterator[FakeEndpoint]:
    """An endpoint that runs while the block does."""
    fake = FakeEndpoint()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            listed = [{"id": name, "owned_by": owner} for name, owner in fake.models.items()]
            data = json.dumps({"object": "list", "data": listed}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fake.bodies.append(body)
                fake.headers.append(dict(self.headers) | {"path": self.path})
                number = len(fake.bodies)
            status, reply, *more = fake.answer(body, number)
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            try:
                self.send_response(status)
                headers = {"Content-Length": str(len(data))} | (more[0] if more else {})
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up, as a time-out test wants it to

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256  # with the usual 5, clients that come together wait for seconds

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield fake
    server.shutdown()
    server.server_close()


@contextmanager
def models_endpoint(models: dict[str, str]) -> Iterator[str]:
    """The base URL of an endpoint that serves these models (name: owner)."""
    with serving() as fake:
        fake.models.update(models)
        yield fake.url
