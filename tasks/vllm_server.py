"""A model server for the time of a run: vLLM's, as a supervised child of this process."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from models.config import EngineConfig, Look, resolve_model_path
from models.errors import LaunchError
from models.evaluation.benchmark import SERVED_NAME, SERVER_FILE
from models.rundir import RunDir, write_atomically
from tasks.launch import BIN, Process, end_of, start, stop
from tasks.ports import free_port
from tasks.settings import server_environment

_MODULE = "models.vllm_server"
_HOST = "127.0.0.1"
_POLL_SECONDS = 0.5
# Models whose processor takes a budget of pixels, as the paper's does.
_TAKE_PIXEL_BUDGET = ("qwen2_vl", "qwen2_5_vl")
_MIN_BATCHED_TOKENS = 8192


@asynccontextmanager
async def model_server(
    run: RunDir, model_path: str, engine: EngineConfig, *, look: Look, seed: int
) -> AsyncIterator[None]:
    """A server of the model while the block runs; ``server.json`` in the run directory says where it listens.

    Raises LaunchError with the end of ``server.txt`` when it ends by itself or is not up in
    ``engine.server_start_seconds``. However the block is left, no process of it stays behind.
    """
    port, log, place = free_port(), run.path / "server.txt", run.path / SERVER_FILE
    folder = resolve_model_path(model_path)
    arguments = server_arguments(folder, engine, look=look, seed=seed)
    command = [sys.executable, "-m", _MODULE, *arguments, "--host", _HOST, "--port", str(port)]
    with log.open("ab") as output:
        environment = server_environment(num_threads=engine.num_threads, bin_folder=BIN)
        process = start(command, output=output, environment=environment)
    url = f"http://{_HOST}:{port}"
    try:
        await _wait_until_up(process, f"{url}/health", log, seconds=engine.server_start_seconds)
        write_atomically(place, json.dumps({"endpoint": f"{url}/v1"}))
        yield
    finally:
        stop(process)
        place.unlink(missing_ok=True)


async def _wait_until_up(process: Process, url: str, log: Path, *, seconds: float) -> None:
    reason = f"The server is not up after engine.server_start_seconds {seconds:g}."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            reason = f"The server ended with exit code {process.returncode} before it was up."
            break
        if await _is_healthy(url):
            return
        await asyncio.sleep(_POLL_SECONDS)
    raise LaunchError(f"{reason} The end of its log ({log}):\n{end_of(log)}")


def server_arguments(folder: Path, engine: EngineConfig, *, look: Look, seed: int) -> list[str]:
    """What vLLM's server is started with, but for its address."""
    arguments = {
        "model": str(folder),
        "served-model-name": SERVED_NAME,
        "dtype": engine.dtype,
        "seed": str(seed),
        "max-model-len": str(engine.max_model_len),
        "max-num-seqs": str(engine.max_num_seqs),
        "max-num-batched-tokens": str(max(engine.max_model_len, _MIN_BATCHED_TOKENS)),
        "limit-mm-per-prompt": json.dumps({"image": engine.max_images}),
        "gpu-memory-utilization": str(engine.gpu_memory_utilization),
        "generation-config": "vllm",  # not the model's own top-p and repetition penalty
        "uvicorn-log-level": "warning",
        **dict(_optional(folder, engine, look)),
        **engine.server_arguments,
    }
    return [word for name, value in arguments.items() for word in (f"--{name}", value) if word]


def _optional(folder: Path, engine: EngineConfig, look: Look) -> Iterator[tuple[str, str]]:
    if engine.enforce_eager:
        yield "enforce-eager", ""
    if engine.kv_cache_gib:
        yield "kv-cache-memory-bytes", str(int(engine.kv_cache_gib * 2**30))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") in _TAKE_PIXEL_BUDGET:
        budget = {"shortest_edge": look.min_pixels, "longest_edge": look.max_pixels}
        yield "mm-processor-kwargs", json.dumps({"size": budget})


async def _is_healthy(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(url, timeout=2.0)).is_success
        except httpx.TransportError:
            return False
