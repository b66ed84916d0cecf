"""A model server lives as long as the run that needs it, and no longer."""

import asyncio
import json
from pathlib import Path

import httpx
import psutil
import pytest

from models.config import EMBEDDED_MODEL, EngineConfig, Look
from models.errors import ConfigError, LaunchError
from models.evaluation.benchmark import SERVED_NAME, SERVER_FILE, at_server, measure, open_engine
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from tasks import vllm_server
from tasks.vllm_server import model_server, server_arguments
from tests.benchmark_examples import file_name, schema_of, small, write

ENGINE = EngineConfig(kind="vllm-server", dtype="float32", max_model_len=512, max_num_seqs=2)
LOOK = Look(max_pixels=12544)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server needs a minute; tests/integration/test_baselines.py has it."""
    monkeypatch.setattr(vllm_server, "_MODULE", "tests.small_server")
    monkeypatch.setattr(vllm_server, "_POLL_SECONDS", 0.02)


@pytest.fixture
def run(tmp_path: Path, work_dir: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", ENGINE)


def serving(run: RunDir, engine: EngineConfig = ENGINE):
    return model_server(run, "embedded", engine, look=LOOK, seed=0)


def child_of_server(run: RunDir) -> int:
    return int((run.path / "server.txt").read_text().split()[1])


def is_alive(pid: int) -> bool:
    """Whether it still runs; init may be slow to collect one that has ended."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_it_listens_while_the_block_runs_and_leaves_nothing_behind(run: RunDir) -> None:
    async def use() -> tuple[str, int]:
        async with serving(run):
            endpoint = json.loads((run.path / SERVER_FILE).read_text())["endpoint"]
            assert httpx.get(endpoint.removesuffix("/v1") + "/health").is_success
            return endpoint, child_of_server(run)

    endpoint, child = asyncio.run(use())
    assert not is_alive(child)
    assert not (run.path / SERVER_FILE).exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(endpoint)


@pytest.mark.parametrize("error", [LaunchError("the child failed"), KeyboardInterrupt()])
def test_it_ends_with_the_run_however_that_ends(run: RunDir, error: BaseException) -> None:
    async def use() -> None:
        async with serving(run):
            raise error

    with pytest.raises(type(error)):
        asyncio.run(use())
    assert not is_alive(child_of_server(run))


def test_a_server_that_cannot_start_is_told_with_its_log(run: RunDir) -> None:
    async def use() -> None:
        async with serving(run, ENGINE.model_copy(update={"server_arguments": {"fail": ""}})):
            raise AssertionError("it is not up")

    with pytest.raises(LaunchError, match=r"exit code 3 before it was up.*\n.*no such architecture"):
        asyncio.run(use())


def test_a_server_that_takes_too_long_is_ended(run: RunDir) -> None:
    async def use() -> None:
        async with serving(run, ENGINE.model_copy(update={"server_start_seconds": 0.001})):
            raise AssertionError("it is not up")

    with pytest.raises(LaunchError, match=r"not up after engine.server_start_seconds 0.001"):
        asyncio.run(use())


def test_a_benchmark_is_answered_by_it(run: RunDir, tmp_path: Path) -> None:
    published, split, rows = small("mme")
    write(tmp_path / "mme" / file_name(split), rows, schema_of(published))
    config = BenchmarkRun(
        benchmark="mme",
        data_path=str(tmp_path / "mme"),
        split=split,
        style="direct",
        model_path="embedded",
        model_name="llava-next-8b",
        look=LOOK,
        engine=ENGINE,
        seed=0,
    )

    async def use():
        async with serving(run):
            return measure(run, config, published, lambda: open_engine(config, run))

    results = asyncio.run(use())
    assert results is not None
    assert (results.num_scored, results.model.name, results.model.engine) == (
        2,
        "llava-next-8b",
        "vllm-server",
    )
    assert results.model.endpoint == ""
    assert results.model.digest
    # Both answers are Yes, one is right: 50 points, and no whole pair.
    assert results.table_number is not None
    assert (results.table_number.value, results.answer_rate) == (50.0, 1.0)


def test_without_a_server_the_run_says_how_to_get_one(run: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"server.json is missing.*vlm-r3 evaluate --benchmark"):
        at_server(ENGINE, run)


def test_what_vllm_is_started_with(tmp_path: Path) -> None:
    engine = ENGINE.model_copy(
        update={
            "enforce_eager": True,
            "kv_cache_gib": 0.5,
            "server_arguments": {"trust-remote-code": "", "x": "1"},
        }
    )
    words = server_arguments(EMBEDDED_MODEL, engine, look=LOOK, seed=3)
    given = dict(zip(words, [*words[1:], ""], strict=True))
    assert (given["--model"], given["--served-model-name"]) == (str(EMBEDDED_MODEL), SERVED_NAME)
    assert (given["--dtype"], given["--seed"], given["--max-model-len"]) == ("float32", "3", "512")
    assert given["--kv-cache-memory-bytes"] == str(2**29)
    assert given["--x"] == "1"
    assert {"--enforce-eager", "--trust-remote-code"} <= set(words)
    assert json.loads(given["--mm-processor-kwargs"])["size"]["longest_edge"] == 12544
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    assert "--mm-processor-kwargs" not in server_arguments(tmp_path, ENGINE, look=LOOK, seed=0)


def test_the_served_engine_is_the_one_that_was_asked_for(run: RunDir) -> None:
    (run.path / SERVER_FILE).write_text('{"endpoint": "http://127.0.0.1:9/v1"}')
    found = at_server(ENGINE, run)
    assert (found.kind, found.endpoint, found.served_model) == ("http", "http://127.0.0.1:9/v1", SERVED_NAME)
    assert found.max_model_len == ENGINE.max_model_len
