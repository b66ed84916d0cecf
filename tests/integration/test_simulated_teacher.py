"""The look-again loop over HTTP: a teacher that refuses, fails, stalls, hangs up and talks nonsense."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from models.config import EngineConfig, Look
from models.http_engine import HTTPEngine
from models.records import Question
from models.rollout import stream
from models.trajectory import StopReason, Trajectory
from models.usage import Usage
from tests.benchmarks import teacher_throughput
from tests.benchmarks.builds import NUM_CONNECTIONS
from tests.simulated_teacher import ANSWERS, COMPLETION_TOKENS, JUNK, LOOKS, PROMPT_TOKENS, teaching

pytestmark = pytest.mark.integration

NUM_QUESTIONS = 60
LOOK = Look(max_pixels=112 * 112)


def ask(url: str, **changes: object) -> tuple[list[Trajectory], Usage]:
    """Sixty questions about one picture, 32 connections."""
    settings = {
        "max_num_seqs": 32,
        "backoff_seconds": 0.01,
        "max_tries": 20,
        "timeout_seconds": 30,
        **changes,
    }
    engine = HTTPEngine(
        EngineConfig.model_validate(
            {"kind": "http", "endpoint": url, "served_model": "m", "max_model_len": 8192, **settings}
        )
    )
    picture = Image.new("RGB", (112, 112), (90, 20, 20))
    questions = [
        Question.of_image(picture, "what does the sign say?", id=str(number), answers=["K7"])
        for number in range(NUM_QUESTIONS)
    ]
    found = stream(
        engine,
        questions=questions,
        look=LOOK,
        num_samples=1,
        temperature=1.0,
        seed=0,
        max_in_flight=engine.max_in_flight,
    )
    trajectories = list(found)
    engine.close()
    return trajectories, engine.usage


def test_a_teacher_that_fails_now_and_then_answers_everything_in_the_end() -> None:
    faults = ("ok", "429", "ok", "ok", "500", "ok", "ok", "cut", "ok", "ok", "408", "ok", "ok")
    with teaching(0.01, faults) as teacher:
        trajectories, usage = ask(teacher.url)
        counts, load = teacher.counts(), teacher.load()
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}
    assert {trajectory.text for trajectory in trajectories} == {LOOKS + ANSWERS}
    assert {trajectory.num_prompt_tokens for trajectory in trajectories} == {2 * PROMPT_TOKENS}
    num_requests = 2 * NUM_QUESTIONS
    assert counts["ok"] == num_requests
    assert load["most at once"] <= 32
    assert usage == Usage(
        num_requests,
        0,
        num_requests * PROMPT_TOKENS,
        num_requests * COMPLETION_TOKENS,
        {
            "rate_limit": counts["429"],
            "server": counts["500"],
            "connection": counts["cut"],
            "timeout": counts["408"],
        },
    )
    assert min(usage.retries.values()) > 0


def test_a_teacher_that_does_not_reply_is_asked_again() -> None:
    with teaching(0.01, ("ok",) * 20 + ("hang",)) as teacher:
        trajectories, usage = ask(teacher.url, timeout_seconds=3.0)
        counts = teacher.counts()
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}
    assert usage.retries["timeout"] == counts["hang"] > 0


def test_junk_ends_a_try_with_its_reason_and_loses_nothing_else() -> None:
    # As many good replies as bad ones: a question needs two, in whatever order requests come.
    with teaching(0.01, (*("ok",) * len(JUNK), *JUNK)) as teacher:
        trajectories, usage = ask(teacher.url)
        counts = teacher.counts()
    stops = Counter(trajectory.stop for trajectory in trajectories)
    num_junk = sum(counts[kind] for kind in JUNK)
    assert set(stops) == {StopReason.ANSWERED, StopReason.ENGINE_ERROR}
    assert stops[StopReason.ENGINE_ERROR] == usage.num_failed == num_junk > 0
    failed = [trajectory.detail for trajectory in trajectories if trajectory.stop is StopReason.ENGINE_ERROR]
    assert all(detail.startswith("The reply ") for detail in failed)
    assert any("502 Bad Gateway" in detail for detail in failed)
    assert any("the model is overloaded" in detail for detail in failed)
    assert usage.num_retries == 0


def test_a_teacher_that_stays_down_fails_every_try() -> None:
    with teaching(0.0, ("503",)) as teacher:
        trajectories, usage = ask(teacher.url, max_tries=2)
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ENGINE_ERROR}
    assert usage == Usage(
        NUM_QUESTIONS,
        NUM_QUESTIONS,
        retries={"rate_limit": 0, "timeout": 0, "server": NUM_QUESTIONS, "connection": 0},
    )


def test_the_benchmark_counts_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_throughput.main(["--rows", "300", "--rounds", "1", "--out", str(tmp_path)])
    figures = json.loads((tmp_path / f"{teacher_throughput.NAME}.json").read_text())
    (only,) = figures["rounds"]
    assert 0 < only["most at once"] <= NUM_CONNECTIONS
    # Most of the rows (some are the test split's) in two waves of 200 ms at least.
    assert 400 < only["requests"] <= 600
    assert 0.4 < only["seconds of the teacher"] < only["seconds of the build"]
    assert 0 < only["share of the ideal"] < 1
    assert only["build, CPU ms per request"] > only["teacher, CPU ms per request"] > 0
