"""What serving costs: the same questions asked of the engine itself and over HTTP, the same tokens in both.

    python -m tests.benchmarks.serving_overhead [--model FOLDER] [--requests 768] [--rounds 3]

The engine itself: the look-again loop on in-process vLLM, pictures decoded beforehand. Over HTTP: `vlm-r3
serve` with its own engine, pictures as PNG data URIs, one client process. Rounds alternate, so that whatever
else the machine does meets both; the best round of each counts. The limits are 10 % and 20 ms per turn.
"""

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from models.config import Look, Preset, resolve_model_path
from models.presets import load_preset
from models.records import png_bytes
from models.rollout import Asked, stream
from models.rundir import write_atomically
from models.tiny import phrases, world
from models.trajectory import Trajectory
from models.vllm_engine import VLLMEngine
from tests.serving_client import Served, served

MAX_OVERHEAD, MAX_MS_PER_TURN = 0.10, 20.0
CONCURRENCY = 128
NUM_ALONE = 40  # requests that are timed one at a time
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One question, ready for either way."""

    asked: Asked
    body: bytes


@dataclass(frozen=True)
class Round:
    """What one round took, and what it said."""

    seconds: float
    cpu_seconds: list[float]
    texts: list[str]


def make_cases(first: int, number: int, look: Look, *, is_trained: bool) -> list[Case]:
    """Questions that lead to a look: the trained model is asked to read, the base to locate."""
    cases = []
    for seed in range(first, first + number):
        rng = np.random.default_rng(seed)
        scene = world.sample_scene(rng, "test")
        color = scene.cards[0].color
        picture = world.draw(scene)
        text = phrases.read_question(color) if is_trained else phrases.locate_prompt(color)
        uri = "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        body = {"model": "vlm-r3", "messages": [{"role": "user", "content": content}]}
        if not is_trained:
            body["messages"].insert(0, {"role": "system", "content": look.system})
        asked = Asked.about(str(seed), text, [picture], look)
        cases.append(Case(asked, json.dumps(body).encode()))
    return cases


def run_direct(engine: VLLMEngine, cases: Sequence[Case], look: Look, in_flight: int) -> list[Trajectory]:
    """The loop on the engine itself, in the order of the cases."""
    asked = [case.asked for case in cases]
    found = stream(
        engine, questions=asked, look=look, num_samples=1, temperature=0.0, seed=0, max_in_flight=in_flight
    )
    return sorted(found, key=lambda trajectory: int(trajectory.question_id))


async def run_served(url: str, cases: Sequence[Case], in_flight: int) -> list[str]:
    """The texts of the answers, in the order of the cases, by that many clients.

    A client is a bare connection: whatever it computed would be taken from the server on a small machine.
    """
    waiting = deque(enumerate(cases))
    texts: dict[int, str] = {}

    async def client() -> None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while waiting:
            index, case = waiting.popleft()
            writer.write(_HEAD.format(host=parts.netloc, length=len(case.body)).encode() + case.body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            assert " 200 " in head.split("\r\n")[0], body
            texts[index] = json.loads(body)["choices"][0]["message"]["content"]
        writer.close()

    await asyncio.gather(*(client() for _ in range(min(in_flight, len(cases)))))
    return [texts[index] for index in range(len(cases))]


def timed(work: Callable[[], list[str]], processes: Sequence[psutil.Process]) -> Round:
    """Wall time of the work, and what these processes computed meanwhile."""
    before = [cpu_seconds(process) for process in processes]
    began = time.monotonic()
    texts = work()
    seconds = time.monotonic() - began
    spent = [cpu_seconds(process) - was for process, was in zip(processes, before, strict=True)]
    return Round(seconds, spent, texts)


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has computed so far, all threads."""
    times = process.cpu_times()
    return times.user + times.system


def compare(rounds: Sequence[list[Case]], engine: VLLMEngine, server: Served, look: Look) -> dict[str, float]:
    """Throughput of both ways, and what a turn takes more when one request is alone.

    Every round asks new questions, so that no engine finds its work done; the first one warms both up.
    """
    own, front = psutil.Process(), psutil.Process(server.pid)
    (engine_process,) = [child for child in front.children() if "spawn_main" in " ".join(child.cmdline())]
    trajectories: list[Trajectory] = []

    def direct(cases: Sequence[Case], in_flight: int) -> list[str]:
        found = run_direct(engine, cases, look, in_flight)
        trajectories.extend(found)
        return [trajectory.sampled_text for trajectory in found]

    def over_http(cases: Sequence[Case], in_flight: int) -> list[str]:
        return asyncio.run(run_served(server.url, cases, in_flight))

    directs, serveds = [], []
    for cases in rounds:
        directs.append(timed(partial(direct, cases, CONCURRENCY), [own]))
        serveds.append(timed(partial(over_http, cases, CONCURRENCY), [front, engine_process, own]))
        assert serveds[-1].texts == directs[-1].texts, "the same tokens in both"
        del trajectories[: -len(cases)]
    turns = [len(trajectory.crops) + 1 for trajectory in trajectories]
    extra = []
    for case, num_turns in zip(rounds[-1][:NUM_ALONE], turns, strict=False):
        alone = timed(partial(direct, [case], 1), [own]).seconds
        extra.append((timed(partial(over_http, [case], 1), [own]).seconds - alone) / num_turns * 1000)
    best, best_served = min(each.seconds for each in directs[1:]), min(each.seconds for each in serveds[1:])
    return {
        "requests per round": len(turns),
        "turns per round": sum(turns),
        "sampled tokens per round": sum(each.num_sampled_tokens for each in trajectories[: len(turns)]),
        "direct, s": best,
        "served, s": best_served,
        "throughput lost, %": (1 - best / best_served) * 100,
        "direct, CPU s": min(each.cpu_seconds[0] for each in directs[1:]),
        "served, CPU s, engine": min(each.cpu_seconds[1] for each in serveds[1:]),
        "served, CPU s, server": min(each.cpu_seconds[0] for each in serveds[1:]),
        "served, CPU s, client": min(each.cpu_seconds[2] for each in serveds[1:]),
        "added per turn, ms": statistics.median(extra),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="embedded", help="embedded, or the folder of a trained model")
    parser.add_argument("--requests", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    preset: Preset = load_preset("tiny")
    is_trained = options.model != "embedded"
    look = preset.look.model_copy(update={"max_turns": preset.engine.max_model_len})
    if not is_trained:
        look = look.model_copy(update={"system": phrases.BASE_SYSTEM_PROMPT})
    rounds = [
        make_cases(options.requests * number, options.requests, look, is_trained=is_trained)
        for number in range(options.rounds + 1)
    ]
    engine = VLLMEngine(Path(resolve_model_path(options.model)), preset.engine, look=preset.look)
    with served(options.model) as server:
        figures = compare(rounds, engine, server, look)
    engine.close()
    for name, value in figures.items():
        print(f"{name:24} {value:g}")
    write_atomically(options.out / "serving_overhead.json", json.dumps(figures, indent=2) + "\n")
    is_within = (
        figures["throughput lost, %"] < MAX_OVERHEAD * 100 and figures["added per turn, ms"] < MAX_MS_PER_TURN
    )
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
