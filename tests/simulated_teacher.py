"""A teacher without a model: a real HTTP server in a process of its own, as quick and as faulty as told.

    python -m tests.simulated_teacher --port 0 --latency 0.2 --faults 429,ok,html

It asks for a crop until it was given one, then answers. Every question passes through ``--faults`` in turn,
one entry per request: ``ok``, a status such as ``429`` or ``500``, ``hang`` (no reply for a minute), ``cut``
(the connection breaks), or a kind of junk (:data:`JUNK`). ``GET /counts`` says how many of each there were,
``GET /load`` how many at once.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

BOX = '{"bbox_2d": [0, 0, 56, 56]}'
LOOKS = f"<think>I look closer at the corner. {BOX}"
ANSWERS = " It says K7.</think><answer>K7</answer>"
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
RETRY_AFTER_SECONDS = 0.2
HANG_SECONDS = 60.0
# Bodies of replies with status 200 that are no answer.
JUNK: dict[str, bytes] = {
    "html": b"<html><body>502 Bad Gateway</body></html>",
    "empty": b"",
    "error": b'{"error": {"message": "the model is overloaded"}}',
    "null": b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
    "nothing": b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}',
    "list": b'{"choices": [{"message": {"content": [1, 2]}, "finish_reason": "stop"}]}',
    "word": b'{"choices": ["hello"]}',
    "latin": b'{"choices": [{"message": {"content": "\xe9"}, "finish_reason": "stop"}]}',
    "surrogate": b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
}


def _completion(text: str, stop: str) -> bytes:
    choice = {
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "stop_reason": stop,
    }
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


class Teacher:
    """The application, as ASGI wants it."""

    def __init__(self, latency_seconds: float, faults: Sequence[str]) -> None:
        self._latency_seconds = latency_seconds
        self._faults = faults
        self._counts: Counter[str] = Counter()
        self._num_open = self._most_open = 0
        self._first = self._last = 0.0
        self._looks, self._answers = _completion(LOOKS, "}"), _completion(ANSWERS, "</answer>")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request. The body is searched and not parsed: what this process computes, the client lacks."""
        if scope["method"] == "GET":
            load = {
                "requests": self._counts.total(),
                "most at once": self._most_open,
                "seconds": self._last - self._first,
            }
            found = self._counts if scope["path"] == "/counts" else load
            await _reply(send, 200, json.dumps(found).encode())
            return
        self._first = self._first or time.monotonic()
        self._num_open += 1
        self._most_open = max(self._most_open, self._num_open)
        try:
            await self._teach(await _body(receive), send)
        finally:
            self._num_open -= 1
            self._last = time.monotonic()

    async def _teach(self, body: bytes, send: Any) -> None:
        fault = self._faults[self._counts.total() % len(self._faults)]
        self._counts[fault] += 1
        await asyncio.sleep(HANG_SECONDS if fault == "hang" else self._latency_seconds)
        if fault == "cut":
            # uvicorn closes the connection of an application that ends in the middle of a body.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        elif fault.isdecimal():
            retry_after = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())] if fault == "429" else []
            await _reply(send, int(fault), b"slow down", retry_after)
        elif fault in JUNK:
            await _reply(send, 200, JUNK[fault])
        else:
            await _reply(send, 200, self._answers if b'"assistant"' in body else self._looks)


async def _body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _reply(send: Any, status: int, data: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    length = (b"content-length", str(len(data)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": data})


@dataclass(frozen=True)
class Simulated:
    """A running teacher."""

    url: str
    process: psutil.Process

    def counts(self) -> dict[str, int]:
        """How many requests met which entry of the faults."""
        return self._get("counts")

    def load(self) -> dict[str, float]:
        """How many requests there were, how many at once at most, and the seconds from the first request to
        the last reply.
        """
        return self._get("load")

    def cpu_seconds(self) -> float:
        """What its process has computed so far."""
        times = self.process.cpu_times()
        return times.user + times.system

    def _get(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url.removesuffix('/v1')}/{name}").json()
        return found


@contextmanager
def teaching(latency_seconds: float, faults: Sequence[str] = ("ok",)) -> Iterator[Simulated]:
    """A teacher that runs while the block does."""
    command = [sys.executable, "-m", "tests.simulated_teacher", "--latency", str(latency_seconds)]
    server = subprocess.Popen(
        [*command, "--faults", ",".join(faults)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield Simulated(f"http://127.0.0.1:{port}/v1", psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait(timeout=60)


class _Announced(uvicorn.Server):
    """Prints the port once it is listening."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free one, which is printed")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds until a reply")
    parser.add_argument("--faults", default="ok", help="what befalls the requests in turn")
    options = parser.parse_args(arguments)
    config = uvicorn.Config(
        Teacher(options.latency, options.faults.split(",")),
        port=options.port,
        lifespan="off",
        access_log=False,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    _Announced(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
