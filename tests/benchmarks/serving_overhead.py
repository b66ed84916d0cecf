"""What serving costs: the same questions asked of vLLM itself and over HTTP, the same tokens in both.

    python -m tests.benchmarks.serving_overhead [--model FOLDER] [--requests 768] [--rounds 3]

Three ways, each in every round, with new questions in every round and the first round not counted:

* ``vllm``: vLLM alone in this process. It gets every turn of every trajectory at once, with the same ids to
  prefill and as many tokens to sample, and the crops ready-made.
* ``loop``: the look-again loop on the same engine, as in training and evaluation.
* ``served``: `vlm-r3 serve` with an engine of its own, asked by one client process.

All of them get the questions' pictures as the same PNG files, over HTTP as data URIs.

The order changes from round to round; a loss is the median over the rounds of the loss within a round. The
limits are 10 % of vLLM's throughput, and 20 ms per turn over the loop when one request is alone.
"""

import argparse
import asyncio
import base64
import gc
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from models.config import Look, Preset, resolve_model_path
from models.presets import load_preset
from models.records import Question
from models.rollout import stream
from models.rundir import write_atomically
from models.tiny import phrases, world
from models.trajectory import GenerationRequest, SampledSpan, Trajectory
from models.vllm_engine import VLLMEngine
from tests.fixed_length import FixedLengthEngine, Pass
from tests.serving_client import Served, served

from vllm import SamplingParams  # isort: skip  # after models.encoding

MAX_OVERHEAD, MAX_MS_PER_TURN = 0.10, 20.0
CONCURRENCY = 192  # more than the engine takes at once, so that it is never short of work
NUM_ALONE = 40  # requests that are timed one at a time
_HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """One question, ready for either way."""

    question: Question
    body: bytes


class SwitchedEngine(FixedLengthEngine):
    """Lengths are fixed for vLLM alone; in the loop the model ends its turns."""

    _is_fixed = False

    def _sampling(self, request: GenerationRequest, room: int) -> SamplingParams:
        chosen = super() if self._is_fixed else super(FixedLengthEngine, self)
        return chosen._sampling(request, room)

    def run_raw(self, requests: Sequence[GenerationRequest], files: Mapping[str, bytes]) -> Pass:
        """vLLM alone."""
        self._is_fixed = True
        try:
            return super().run_raw(requests, files)
        finally:
            self._is_fixed = False


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
        question = Question.of_image(picture, text, id=str(seed))
        uri = "data:image/png;base64," + base64.b64encode(question.image_bytes).decode()
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
        body = {"model": "vlm-r3", "messages": [{"role": "user", "content": content}]}
        if not is_trained:
            body["messages"].insert(0, {"role": "system", "content": look.system})
        cases.append(Case(question, json.dumps(body).encode()))
    return cases


def run_direct(engine: VLLMEngine, cases: Sequence[Case], look: Look, in_flight: int) -> list[Trajectory]:
    """The loop on the engine itself, in the order of the cases."""
    found = stream(
        engine,
        questions=[case.question for case in cases],
        look=look,
        num_samples=1,
        temperature=0.0,
        seed=0,
        max_in_flight=in_flight,
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


def turns_of(trajectory: Trajectory) -> Iterator[GenerationRequest]:
    """The turns of a trajectory, as vLLM is asked for them."""
    for number, span in enumerate(trajectory.spans):
        if isinstance(span, SampledSpan):
            name = f"{trajectory.question_id}/{number}"
            before = trajectory.spans[:number]
            yield GenerationRequest(name, trajectory.prompt, before, (), span.num_tokens or 0, 0.0)


class Ways:
    """The three ways, over the same cases."""

    def __init__(self, engine: FixedLengthEngine, server: Served, look: Look) -> None:
        self._engine, self._server, self._look = engine, server, look
        self._own, self._front = psutil.Process(), psutil.Process(server.pid)
        (self._engine_process,) = [
            child for child in self._front.children() if "spawn_main" in " ".join(child.cmdline())
        ]

    def loop(self, cases: Sequence[Case], in_flight: int = CONCURRENCY) -> tuple[Round, list[Trajectory]]:
        """The loop in this process, with empty caches."""
        self._engine.begin()
        found: list[Trajectory] = []

        def work() -> list[str]:
            found.extend(run_direct(self._engine, cases, self._look, in_flight))
            return [trajectory.sampled_text for trajectory in found]

        return timed(work, [self._own]), found

    def vllm(self, cases: Sequence[Case], trajectories: Sequence[Trajectory]) -> Round:
        """vLLM alone with the turns of these trajectories."""
        requests = [turn for trajectory in trajectories for turn in turns_of(trajectory)]
        files = {
            trajectory.prompt.pictures[0].digest: case.question.image_bytes
            for case, trajectory in zip(cases, trajectories, strict=True)
        }
        measured = self._engine.run_raw(requests, files)
        sampled = sum(trajectory.num_sampled_tokens for trajectory in trajectories)
        assert (measured.requests, measured.sampled) == (len(requests), sampled), "the same tokens"
        return Round(measured.seconds, [], [])

    def served(self, cases: Sequence[Case], in_flight: int = CONCURRENCY) -> Round:
        """Over HTTP."""
        return timed(
            lambda: asyncio.run(run_served(self._server.url, cases, in_flight)),
            [self._front, self._engine_process, self._own],
        )


def compare(rounds: Sequence[list[Case]], ways: Ways) -> dict[str, float]:
    """Throughput of all ways, and what a turn takes more when one request is alone."""
    seconds: dict[str, list[float]] = {"vllm": [], "loop": [], "served": []}
    spent: list[list[float]] = []
    for number, cases in enumerate(rounds):
        # Who comes first changes, so that a machine that slows down favours nobody.
        served = ways.served(cases) if number % 2 else None
        loop, trajectories = ways.loop(cases)
        alone = ways.vllm(cases, trajectories)
        served = served or ways.served(cases)
        assert served.texts == loop.texts, "the same tokens"
        if number:  # the first round warms all of them up
            for name, one in (("vllm", alone), ("loop", loop), ("served", served)):
                seconds[name].append(one.seconds)
            spent.append([*loop.cpu_seconds, *served.cpu_seconds])
    num_turns = [len(trajectory.crops) + 1 for trajectory in trajectories]
    figures: dict[str, float] = {
        "rounds": len(spent),
        "requests per round": len(num_turns),
        "turns per round": sum(num_turns),
        "sampled tokens per round": sum(each.num_sampled_tokens for each in trajectories),
    }
    figures |= {f"{name}, s": statistics.median(found) for name, found in seconds.items()}
    for name in ("vllm", "loop"):
        lost = [1 - own / served for own, served in zip(seconds[name], seconds["served"], strict=True)]
        figures[f"throughput lost to {name}, %"] = statistics.median(lost) * 100
        figures[f"throughput lost to {name}, least, %"] = min(lost) * 100
        figures[f"throughput lost to {name}, most, %"] = max(lost) * 100
    processes = ("loop", "served, server", "served, engine", "served, client")
    for name, found in zip(processes, zip(*spent, strict=True), strict=True):
        figures[f"{name}, CPU s"] = statistics.median(found)
    return figures


def added_per_turn(cases: Sequence[Case], ways: Ways) -> float:
    """Milliseconds that a turn over HTTP takes more than in the loop, one request at a time; the questions
    must be new to the server, which keeps what it knows.
    """
    extra = []
    for case in cases:
        alone, (trajectory,) = ways.loop([case], 1)
        num_turns = len(trajectory.crops) + 1
        extra.append((ways.served([case], 1).seconds - alone.seconds) / num_turns * 1000)
    return statistics.median(extra)


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
    single = make_cases(options.requests * (options.rounds + 1), NUM_ALONE, look, is_trained=is_trained)
    engine = SwitchedEngine(Path(resolve_model_path(options.model)), preset.engine, look=preset.look)
    engine.watch()
    gc.freeze()  # as the server's engine does: otherwise the collector would be measured
    with served(options.model) as server:
        ways = Ways(engine, server, look)
        figures = compare(rounds, ways)
        figures["added per turn, ms"] = added_per_turn(single, ways)
    engine.close()
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    write_atomically(options.out / "serving_overhead.json", json.dumps(figures, indent=2) + "\n")
    is_within = (
        figures["throughput lost to vllm, %"] < MAX_OVERHEAD * 100
        and figures["added per turn, ms"] < MAX_MS_PER_TURN
    )
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
