"""Judges over HTTP: a real server that answers by a rule, fails, stalls or talks nonsense."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.benchmarks.judging import get_judging
from models.config import EngineConfig, JudgeConfig, Look
from models.errors import ConfigError, ScoringError
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_results import BenchmarkResults, to_text
from models.evaluation.benchmark_rows import read_asked
from models.evaluation.score import main as score_main
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from models.trajectory import GenerationRequest
from tests.benchmark_examples import ROWS
from tests.chat_endpoint import FakeEndpoint, Reply, completion, serving
from tests.oracle_vectors import FOLDER, read_vectors
from tests.unit.evaluation.test_benchmark import Counted, config_of, run_of, set_of

pytestmark = pytest.mark.integration

NUM_PAIRS = 5
# What the model says to the questions of a pair: the rule finds the first right and cannot read the second.
CLEAR, UNCLEAR = "Yes", "It is {} all over, I think."
KEY = "sk-very-secret-7"


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    """A judge that says No to everything, which is right for every second question of the set."""
    with serving() as fake:
        fake.answer = lambda body, number: (200, completion("No"))
        yield fake


def judge_at(server: FakeEndpoint, **changes: object) -> JudgeConfig:
    values = {"timeout_seconds": 5, "max_tries": 3, "backoff_seconds": 0.001, "served_model": "judge-7b"}
    return JudgeConfig.model_validate({"endpoint": server.url, **values, **changes})


def pairs() -> list[dict]:
    """Questions that differ, so that each text of the model is judged for itself."""
    return [
        {
            **row,
            "question_id": f"OCR/{number}.png",
            "question": f"Picture {number}: {row['question']}",
        }
        for number in range(NUM_PAIRS)
        for row in ROWS["mme"][1]
    ]


def says(request: GenerationRequest) -> str:
    number = re.search(r"Picture (\d)", request.prompt.text)
    assert number
    answer = UNCLEAR.format(number[1]) if "blue" in request.prompt.text else CLEAR
    return f"<think>SECRET THOUGHT, nothing for a judge.</think><answer>{answer}</answer>"


class Bench:
    """Ten questions of MME, a scripted model, and the judge at a server; all in one run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published = set_of("mme", folder, pairs())
        self.model = Counted(says)

    def run(self, judge: JudgeConfig | None = None, **changes: object) -> BenchmarkResults:
        verdicts = str(self.folder / "verdicts")
        config = config_of("mme", self.folder, verdicts_path=verdicts, **changes)
        config = config.model_copy(update={"judge": judge or JudgeConfig()})
        run = RunDir.create(self.folder / "run", config, may_change=True)
        return measure(run, config, self.published, self.model)

    def rows(self) -> dict[str, object]:
        return {row.id: row for row in read_asked(self.folder / "run" / "predictions.parquet")}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sent(server: FakeEndpoint) -> list[str]:
    return [body["messages"][0]["content"] for body in server.bodies]


def test_only_what_the_rule_cannot_read_goes_to_the_judge(server: FakeEndpoint, bench: Bench) -> None:
    """By the rule 5 of 10 are right; with the judge, which is right about the other five, all ten."""
    results = bench.run(judge_at(server))
    assert len(server.bodies) == NUM_PAIRS
    for number, prompt in enumerate(sorted(sent(server))):
        assert f"Picture {number}: Is it blue?" in prompt
        assert UNCLEAR.format(number) in prompt
        assert "SECRET THOUGHT" not in prompt
        assert "Please answer yes or no" not in prompt
    assert {(body["temperature"], body["model"], body["max_tokens"]) for body in server.bodies} == {
        (0.0, "judge-7b", 64)
    }
    assert (results.headline.value, results.needs_llm, results.num_scored) == (0.5, 5, 10)
    judge = results.judge
    assert judge is not None
    assert judge.headline is not None
    assert (judge.headline.value, judge.num_asked, judge.num_cached, judge.num_failed) == (1.0, 5, 0, 0)
    assert judge.metrics == {
        "vlmevalkit_judge": {
            "perception": 200.0,
            "reasoning": 0,
            "sum": 200.0,
            "per_category": {"OCR": 200.0},
        }
    }
    assert (judge.model, judge.version) == ("judge-7b", get_judging("mme").version_of("judge-7b"))
    text = to_text(results)
    assert "50.0 % " in text
    assert "with judge  100.0 %" in text
    assert f"judge       judge-7b at {server.url}, version {judge.version}" in text
    assert "needs_llm   5 answers" in text
    assert re.search(r"\n  vlmevalkit_judge/sum +200\n", text)
    assert text.isascii()
    judged = bench.rows()["OCR/3.png#7"]
    assert (judged.score["parsed"], judged.judged["verdict"], judged.judged["correct"]) == (
        "other",
        "No",
        True,
    )


def test_without_a_judge_the_rule_is_all_there_is(server: FakeEndpoint, bench: Bench) -> None:
    """The numbers of the rule are the same with a judge; how many need one is said without one."""
    alone = bench.run()
    assert (server.bodies, alone.judge, alone.needs_llm) == ([], None, 5)
    assert "needs_llm   5 answers" in to_text(alone)
    assert [row.judged for row in bench.rows().values()] == [None] * 10
    scores = {id: row.score for id, row in bench.rows().items()}
    judged = bench.run(judge_at(server))
    assert judged.model_copy(update={"judge": None}) == alone
    assert {id: row.score for id, row in bench.rows().items()} == scores
    # The model's answers were kept: it was asked once about each question.
    assert len(bench.model.asked) == 10


def test_verdicts_are_kept_for_the_same_judge_only(server: FakeEndpoint, bench: Bench) -> None:
    first = bench.run(judge_at(server))
    again = bench.run(judge_at(server))
    assert len(server.bodies) == NUM_PAIRS
    assert again.judge is not None
    assert first.judge is not None
    assert again.judge == first.judge.model_copy(update={"num_cached": 5})
    server.answer = lambda body, number: (200, completion("Yes"))
    other = bench.run(judge_at(server, served_model="judge-72b"))
    assert len(server.bodies) == 2 * NUM_PAIRS
    assert other.judge is not None
    assert other.judge.headline is not None
    assert (other.judge.headline.value, other.judge.num_cached) == (0.5, 0)
    assert other.judge.version != first.judge.version
    # And the first judge's verdicts are still its own.
    assert bench.run(judge_at(server)).judge == again.judge
    assert len(server.bodies) == 2 * NUM_PAIRS
    assert len(bench.model.asked) == 10


FAILURES: dict[str, Callable[[dict, int], tuple[int, dict | str]]] = {
    "busy": lambda body, number: (503, "no capacity"),
    "slow down": lambda body, number: (429, "rate limit"),
    "who are you": lambda body, number: (401, "bad key"),
    "no JSON": lambda body, number: (200, "<html>gateway</html>"),
    "no text": lambda body, number: (200, {"choices": [{"message": {"content": None}}]}),
    "talk": lambda body, number: (200, completion("Well, I would say no.")),
    "nothing": lambda body, number: (200, completion("")),
    "cut off": lambda body, number: (200, completion("No", "length")),
    "stalled": lambda body, number: time.sleep(3) or (200, completion("No")),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_judge_leaves_its_row_unscored(failure: str, server: FakeEndpoint, bench: Bench) -> None:
    """One of ten rows: nine are scored, by the rule 5 of 9 and with the judge 9 of 9, and the run says so."""

    def fails_at_3(body: dict, number: int) -> tuple[int, dict | str]:
        is_broken = "Picture 3" in body["messages"][0]["content"]
        return FAILURES[failure](body, number) if is_broken else (200, completion("No"))

    server.answer = fails_at_3
    judge = judge_at(server, timeout_seconds=1 if failure == "stalled" else 60, max_tries=2)
    results = bench.run(judge, max_unscored_share=0.1)
    assert (results.num_rows, results.num_scored, results.num_failed) == (10, 9, 1)
    assert results.judge is not None
    assert results.judge.headline is not None
    assert (results.judge.num_asked, results.judge.num_failed, results.judge.num_scored) == (5, 1, 9)
    assert (results.headline.value, results.judge.headline.value) == (5 / 9, 1.0)
    failed = bench.rows()["OCR/3.png#7"]
    assert (failed.outcome, failed.score, failed.judged) == ("failed", None, None)
    assert failed.prediction == UNCLEAR.format(3)
    assert failed.reason.startswith(f"judge judge-7b (version {results.judge.version}): ")
    # A pair has lost a half, so there are no points, by the rule or with the judge.
    assert results.metrics is None
    assert results.judge.metrics is None
    assert "the judge failed at 1 answers" in to_text(results)

    # The next start asks the judge about this row, and the model about none.
    server.answer = lambda body, number: (200, completion("No"))
    server.bodies.clear()
    results = bench.run(judge_at(server), max_unscored_share=0.1)
    assert ["Picture 3" in prompt for prompt in sent(server)] == [True]
    assert (results.num_scored, results.num_failed, len(bench.model.asked)) == (10, 0, 10)
    assert results.judge is not None
    assert (results.judge.num_cached, results.judge.num_failed) == (4, 0)


def test_a_reply_that_is_no_verdict_is_asked_about_once_more(server: FakeEndpoint, bench: Bench) -> None:
    """In the same conversation and at the same temperature; the second reply counts."""
    server.answer = lambda body, number: (
        200,
        completion("It seems to deny it." if len(body["messages"]) == 1 else "No"),
    )
    results = bench.run(judge_at(server))
    assert results.judge is not None
    assert (results.num_failed, results.judge.num_failed, len(server.bodies)) == (0, 0, 2 * NUM_PAIRS)
    again = [body for body in server.bodies if len(body["messages"]) > 1]
    assert {body["temperature"] for body in again} == {0.0}
    assert [message["role"] for message in again[0]["messages"]] == ["user", "assistant", "user"]
    assert again[0]["messages"][2]["content"] == get_judging("mme").reminder


def test_what_passes_is_tried_again(server: FakeEndpoint, bench: Bench) -> None:
    server.answer = lambda body, number: (503, "busy") if number <= 3 else (200, completion("No"))
    assert bench.run(judge_at(server, max_tries=5)).num_failed == 0
    assert len(server.bodies) == NUM_PAIRS + 3


def test_a_judge_that_thinks_aloud_is_read_after_its_thoughts(server: FakeEndpoint, bench: Bench) -> None:
    server.answer = lambda body, number: (200, completion("<think>Yes? It is not blue.</think>\n\nNo"))
    results = bench.run(judge_at(server))
    assert results.judge is not None
    assert results.judge.headline is not None
    assert results.judge.headline.value == 1.0


def test_a_dead_judge_stops_the_run_early_and_nothing_is_lost(server: FakeEndpoint, bench: Bench) -> None:
    is_over = threading.Event()

    def answer(body: dict, number: int) -> Reply:
        if number > 3:  # what is asked before the failure was noticed keeps the only connection busy
            assert is_over.wait(60)
        return (500, "down") if number > 2 else (200, completion("No"))

    server.answer = answer
    with pytest.raises(ScoringError, match=r"no verdict on 1 answers.*judge-7b.*500: down.*start again"):
        bench.run(judge_at(server, num_connections=1, max_tries=1))
    is_over.set()
    # The failure, and perhaps the request that was sent when it came.
    assert 3 <= len(server.bodies) <= 4
    server.answer = lambda body, number: (200, completion("No"))
    results = bench.run(judge_at(server))
    assert results.judge is not None
    assert results.judge.num_cached in (2, 3)
    assert (len(bench.model.asked), results.num_scored) == (10, 10)


def test_requests_are_sent_together(server: FakeEndpoint, bench: Bench) -> None:
    # Each reply waits until all five requests are there.
    together = threading.Barrier(NUM_PAIRS, timeout=60)

    def answer(body: dict, number: int) -> tuple[int, dict]:
        together.wait()
        return 200, completion("No")

    server.answer = answer
    assert bench.run(judge_at(server)).num_failed == 0


def test_equal_answers_to_equal_questions_are_asked_about_once(server: FakeEndpoint, tmp_path: Path) -> None:
    rows = [{**row, "question_id": f"{number}"} for number in range(3) for row in ROWS["mme"][1]]
    published = set_of("mme", tmp_path, rows)
    config = config_of("mme", tmp_path).model_copy(update={"judge": judge_at(server)})
    unclear = Counted(lambda request: "<answer>So it seems.</answer>")
    results = measure(run_of(tmp_path, config), config, published, unclear)
    assert results.judge is not None
    assert (len(server.bodies), results.judge.num_asked) == (2, 6)


def test_a_long_answer_is_cut_and_counted(server: FakeEndpoint, tmp_path: Path) -> None:
    published = set_of("mme", tmp_path)
    look = Look(max_pixels=12544, max_sampled_tokens=20_000)
    config = config_of("mme", tmp_path, look=look).model_copy(update={"judge": judge_at(server)})
    long = Counted(lambda request: f"<answer>{'so it seems ' * 1000}</answer>")
    results = measure(run_of(tmp_path, config), config, published, long)
    assert results.judge is not None
    assert results.judge.num_cut == 2
    assert all(len(prompt) < 6000 and "characters are left out here" in prompt for prompt in sent(server))
    assert "2 shown with their middle cut out" in to_text(results)


def test_a_benchmark_without_judge_refuses_one_before_anything_is_asked(
    server: FakeEndpoint, tmp_path: Path
) -> None:
    published = set_of("docvqa", tmp_path)
    config = config_of("docvqa", tmp_path).model_copy(update={"judge": judge_at(server)})
    model = Counted(says)
    with pytest.raises(ConfigError, match="docvqa is scored by its rule alone"):
        measure(run_of(tmp_path, config), config, published, model)
    assert model.num_opened == 0


def test_the_key_is_sent_and_kept_nowhere(server: FakeEndpoint, tmp_path: Path) -> None:
    """As it really runs: a child process, model and judge behind endpoints, the keys in the environment.

    The judge refuses the first answer and repeats the key while it does so, as some endpoints do.
    """
    published = set_of("hallusionbench", tmp_path)

    def answer(body: dict, number: int) -> tuple[int, dict | str]:
        if body["model"] == "answerer":
            return 200, completion("<think>.</think><answer>Hard to tell.")
        if "Does the chart rise?" in body["messages"][0]["content"]:
            return 401, f"Incorrect API key provided: {KEY}"
        return 200, completion("unclear")

    server.answer = answer
    engine = EngineConfig(kind="http", endpoint=server.url, served_model="answerer")
    config = config_of(
        "hallusionbench", tmp_path, engine=engine, model_path="", allow_partial=True, max_unscored_share=1.0
    )
    config = config.model_copy(update={"judge": judge_at(server)})
    assert isinstance(config, BenchmarkRun)
    run = RunDir.create(tmp_path / "run", config)
    child = subprocess.run(
        [sys.executable, "-m", "models.evaluation.benchmark", str(run.path)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "VLM_R3_JUDGE_API_KEY": KEY, "VLM_R3_API_KEY": "other"},
    )
    # Both rows have this question, so none was scored, and the run says why.
    assert published.splits == {"image": 2}
    assert "Incorrect API key provided: ***" in run.result().reason
    sent_keys = {
        (body["model"], headers["Authorization"]) for body, headers in zip(server.bodies, server.headers)
    }
    assert sent_keys == {("answerer", "Bearer other"), ("judge-7b", f"Bearer {KEY}")}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written + (child.stdout + child.stderr).encode()


def read_output(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict], dict, str]:
    printed = capsys.readouterr()
    *lines, last = [json.loads(line) for line in printed.out.splitlines()]
    return lines, last, printed.err


def test_a_file_is_scored_with_a_judge(
    server: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule's fields and metrics are those without judge; only what needs a model is asked about."""
    file = str(FOLDER / "mathvista.jsonl")
    assert score_main(["mathvista", file]) == 0
    plain, plain_metrics, _ = read_output(capsys)
    server.answer = lambda body, number: (200, completion("none"))
    arguments = ["mathvista", file, "--judge-endpoint", server.url, "--judge-model", "judge-7b"]
    arguments += ["--verdicts", str(tmp_path / "verdicts")]
    assert score_main(arguments) == 0
    lines, metrics, _ = read_output(capsys)
    assert [{k: v for k, v in line.items() if k != "judge"} for line in lines] == plain
    assert {k: v for k, v in metrics.items() if k != "judge"} == plain_metrics
    needing = [line for line in lines if line["needs_llm_quick"] is True]
    assert metrics["counts"]["needs_llm"] == len(needing) == metrics["judge"]["num_asked"]
    assert {line["judge"]["verdict"] for line in needing} == {""}
    assert {line["judge"]["verdict"] for line in lines if line["needs_llm_quick"] is not True} == {None}
    # With "none" everywhere the judge extracts nothing, as the rule without a model.
    assert metrics["judge"]["metrics"] == {
        name: plain_metrics["metrics"][name] for name in metrics["judge"]["metrics"]
    }
    texts = {vector["prediction"] for vector in read_vectors("mathvista")}
    assert all(any(text in prompt for text in texts if text) for prompt in sent(server))
    server.bodies.clear()
    assert score_main(arguments) == 0
    assert server.bodies == []


def test_a_file_whose_judge_fails_says_so(
    server: FakeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROWS["mmmu"][1]
    file = tmp_path / "p.jsonl"
    lines = [
        {"id": place, "row": {k: v for k, v in row.items() if "image" not in k}, "prediction": text}
        for place, (row, text) in enumerate(zip(rows, ("the older one", "A: seven"), strict=True))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    server.answer = lambda body, number: (400, "no")
    arguments = ["mmmu", str(file), "--judge-endpoint", server.url, "--judge-model", "j"]
    assert score_main([*arguments, "--verdicts", str(tmp_path / "v")]) == 1
    (first, second), metrics, err = read_output(capsys)
    assert "400: no" in first["judge"]["failed"]
    assert second["judge"]["option"] == "A"
    assert (metrics["judge"]["num_failed"], metrics["judge"]["num_scored"]) == (1, 1)
    assert "failed at 1 of 1 answers" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--judge-model", "m"], "--judge-model m needs --judge-endpoint"),
        (["--judge-endpoint", "http://h/v1"], "--judge-endpoint http://h/v1 needs --judge-model"),
        (["--judge-endpoint", "h", "--judge-model", "m"], "'h' is no URL"),
    ],
)
def test_half_a_judge_is_code_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_main(["mme", str(FOLDER / "mme.jsonl"), *arguments]) == 2
    assert says in capsys.readouterr().err
