"""How near data generation comes to what a slow teacher allows: requests per second over HTTP.

    python -m tests.benchmarks.teacher_throughput [--questions N] [--rounds N]

The teacher is :mod:`tests.simulated_teacher`, a server in a process of its own on the same machine: it
replies after 200 ms, asks for one crop and answers. There are 256 connections, so that at most 256 / 0.2 s =
1280 requests a second are possible; some more questions are in flight, whose next request waits for a
connection. Decoding, prompt, crop, its encoding, the cheap filters and the record are included; nobody
judges. The CPU time of both processes is shown, too, which other work on the machine changes less than the
rate.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from models.ahead import ahead
from models.config import EngineConfig, Look
from models.http_engine import HTTPEngine
from models.records import Question, sha256
from models.rundir import write_atomically
from models.vlir.entries import Ready
from models.vlir.filters import Judges
from models.vlir.generate import Task, Teacher, generate
from models.vlir.judges import Nobody
from models.vlir.prompts import ask
from tests.simulated_teacher import Simulated, teaching

NAME = "teacher_throughput"
LATENCY_SECONDS, CONCURRENCY = 0.2, 256
IDEAL = CONCURRENCY / LATENCY_SECONDS  # requests per second
MIN_SHARE = 0.9
REQUESTS_PER_QUESTION = 2
LOOK = Look(max_pixels=112 * 112)
SIDE = 112


def make_questions(number: int) -> list[Question]:
    """Questions about small photographs, as JPEG; noise on a gradient, so that they compress like one."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, SIDE)[:, None, None]
    pictures = []
    for _ in range(min(number, 256)):
        noise = rng.normal(slope + rng.uniform(0, 50, 3), 6, (SIDE, SIDE, 3))
        buffer = io.BytesIO()
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG", quality=90)
        pictures.append(buffer.getvalue())
    return [
        Question(
            id=str(index),
            source="benchmark",
            split="train",
            image_bytes=pictures[index % len(pictures)],
            image_sha256=sha256(pictures[index % len(pictures)]),
            width=SIDE,
            height=SIDE,
            text="What does the sign in the corner say?",
            answers=("K7",),
        )
        for index in range(number)
    ]


def one_round(teacher: Simulated, questions: Sequence[Question]) -> dict[str, float]:
    """A record of every question."""
    engine = HTTPEngine(
        EngineConfig(kind="http", endpoint=teacher.url, served_model="m", max_num_seqs=CONCURRENCY),
        has_thread=False,
    )
    began, server_began, client_began = time.monotonic(), teacher.cpu_seconds(), time.process_time()
    made = ahead(lambda question: ask(question, question.image(), LOOK, "auto"), questions)
    tasks = (Task(Ready(question, posed.asked, posed.prompt_id), 0, 0, None) for question, posed in made)
    teacher_of_ours = Teacher(engine, "simulated", engine.max_in_flight)
    judges = Judges(Nobody(), Nobody())
    reasons = {
        tried.record.reason
        for tried in generate(teacher_of_ours, tasks, look=LOOK, judges=judges, num_samples=1)
    }
    seconds = time.monotonic() - began
    client, server = time.process_time() - client_began, teacher.cpu_seconds() - server_began
    num_requests = engine.usage.num_requests
    engine.close()
    assert reasons == {""}, reasons
    assert num_requests == REQUESTS_PER_QUESTION * len(questions)
    return {
        "seconds": seconds,
        "requests per second": num_requests / seconds,
        "share of the ideal": num_requests / seconds / IDEAL,
        "client, CPU ms per request": client / num_requests * 1000,
        "server, CPU ms per request": server / num_requests * 1000,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--questions", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    questions = make_questions(options.questions)
    with teaching(LATENCY_SECONDS) as teacher:
        one_round(teacher, questions[:CONCURRENCY])  # both sides import and connect
        rounds = [one_round(teacher, questions) for _ in range(options.rounds)]
        most_at_once = teacher.counts()["most at once"]
    assert most_at_once <= CONCURRENCY
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, value in median.items():
        print(f"{name:28} {value:.3f}")
    figures = {
        "ideal requests per second": IDEAL,
        "most at once": most_at_once,
        "median": median,
        "rounds": rounds,
    }
    write_atomically(options.out / f"{NAME}.json", json.dumps(figures, indent=2) + "\n")
    return 0 if median["share of the ideal"] >= MIN_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
