"""vLLM's own OpenAI server with the embedded model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from models.config import EMBEDDED_MODEL
from models.presets import load_preset
from tasks.ports import free_port

PRESET = load_preset("tiny")
START_SECONDS = 400


@contextmanager
def model_server(log: Path) -> Iterator[str]:
    """The base URL of a server that runs while the block does; it serves ``tiny``."""
    port = free_port()
    budget = (
        f'{{"size": {{"shortest_edge": {PRESET.look.min_pixels}, "longest_edge": {PRESET.look.max_pixels}}}}}'
    )
    arguments = {
        "--model": str(EMBEDDED_MODEL),
        "--served-model-name": "tiny",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": str(PRESET.engine.max_model_len),
        "--limit-mm-per-prompt": '{"image": 4, "video": 0}',
        "--mm-processor-kwargs": budget,
        "--kv-cache-memory-bytes": str(2**28),
        "--generation-config": "vllm",
    }
    flat = [word for pair in arguments.items() for word in pair]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "models.vllm_server", *flat, "--enforce-eager"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def _wait_until_healthy(server: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, f"The server ended:\n{log.read_text()[-2000:]}"
        try:
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(f"The server is not up after {START_SECONDS} s:\n{log.read_text()[-2000:]}")
