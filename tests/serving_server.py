"""A real HTTP server in this process, around an engine that writes a few characters per step."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
from openai import OpenAI
from PIL import Image

from models.config import EngineConfig, Look
from models.engine import Engine, ScriptedEngine
from models.errors import EngineError
from models.records import png_bytes
from models.serving.app import build_app
from models.serving.config import ServingConfig, limits_for
from models.serving.server import http_server, listen, url_of
from models.trajectory import Draft, GenerationRequest, Piece, SampledSpan

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8))
# A picture of 448 x 448 is seen at 112 x 112, a quarter of its size.
LOOK = Look(min_pixels=3136, max_pixels=12544, max_crops=3, max_sampled_tokens=400)
ENGINE = EngineConfig(max_model_len=2000, max_images=4, max_num_seqs=8)


class Writer(ScriptedEngine):
    """Writes what the script says, ``pace`` characters per step, and shows drafts of it.

    A script that says "break" fails its request, one that says "crash" the engine.
    """

    def __init__(self, script: Callable[[GenerationRequest], str], *, pace: int = 1000) -> None:
        super().__init__(script)
        self.pace = pace
        self.seconds_per_step = 0.0
        self.live: dict[str, tuple[GenerationRequest, Piece, int]] = {}
        self._drafts: list[Draft] = []

    def submit(self, request: GenerationRequest) -> None:
        piece = self._answer(request)
        if piece.span.text == "break":
            piece = Piece(request.request_id, SampledSpan(""), "error", "too hot")
        self.live[request.request_id] = request, piece, 0

    def step(self) -> list[Piece]:
        time.sleep(self.seconds_per_step)
        self._drafts, done = [], []
        for id, (request, piece, written) in list(self.live.items()):
            if piece.span.text == "crash":
                raise EngineError("out of memory")
            more = piece.span.text[written : written + self.pace]
            if written + self.pace >= len(piece.span.text):
                del self.live[id]
                done.append(piece)
            else:
                self.live[id] = request, piece, written + self.pace
                if request.shows_drafts:
                    self._drafts.append(Draft(id, more))
        return done

    def drafts(self) -> list[Draft]:
        return self._drafts

    def abort(self, request_id: str) -> None:
        self.live.pop(request_id, None)


@dataclass
class Running:
    """A server that takes requests, and the engine behind it."""

    url: str
    engine: Writer
    failures: list[str] = field(default_factory=list)

    def metric(self, name: str) -> float:
        """The value of a line in /metrics."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)


@contextmanager
def running(
    engine: Engine, *, api_key: str = "", engine_config=ENGINE, allow_private_urls=False, **limits
) -> Iterator[Running]:
    """The server in a thread, until the block ends."""
    config = ServingConfig(
        port=0,
        look=LOOK,
        engine=engine_config,
        allow_private_urls=allow_private_urls,
        limits=limits_for(LOOK, engine_config, limits),
    )
    listener = listen(config.host, config.port)
    started = threading.Event()
    server = Running(url_of(listener), engine)
    app = build_app(config, engine, api_key=api_key, on_failure=lambda: server.failures.append("failed"))
    http = http_server(app, config, started.set)
    thread = threading.Thread(target=lambda: http.run(sockets=[listener]), daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield server
    finally:
        http.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


COMMAND = '{"bbox_2d": [28, 28, 56, 56]}'
ANSWER = "<think>Ünïcode 界.</think><answer>K7</answer>"


def script(request: GenerationRequest) -> str:
    """What the question says to write; its pieces are parted by bars, one per turn."""
    turns = request.prompt.text.split("|")
    num_written = sum(isinstance(span, SampledSpan) for span in request.spans)
    return turns[min(num_written, len(turns) - 1)]


def client_of(server: Running, *, api_key: str = "none") -> OpenAI:
    """OpenAI's own client, which tries once."""
    return OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0, timeout=120)


def question(text: str, *images: str) -> list:
    """The messages of one question; pictures stand before the text."""
    parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ask(client: OpenAI, text: str, *images: str, **options):
    """What the server makes of one question."""
    return client.chat.completions.create(model="vlm-r3", messages=question(text, *images), **options)
