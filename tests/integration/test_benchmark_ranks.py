"""Ranks as real processes under torchrun: one is killed in the middle, and the next start asks the rest."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.benchmark_rows import AskedRow, read_asked
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from tasks import launch
from tests.benchmark_examples import ROWS, mme_of_embedded_base

pytestmark = pytest.mark.integration

# Enough that a rank has written a file (64 rows, or those of half a minute) before its last row.
NUM_PAIRS = 100
MODULE = ["-m", "models.evaluation.benchmark"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkRun:
    rows = [
        {**row, "question_id": f"OCR/{number}.png"} for number in range(NUM_PAIRS) for row in ROWS["mme"][1]
    ]
    # One row at a time: which rows share a batch moves logits by rounding, and these answers are near ties.
    return mme_of_embedded_base(tmp_path, rows, overrides=["engine.max_num_seqs=1"])


def kept(run: RunDir) -> dict[str, AskedRow]:
    return {row.id: row for path in run.path.glob("rows/*/*.parquet") for row in read_asked(path)}


def kill_one_rank(run: RunDir) -> None:
    """Start two ranks, and kill the second one (SIGKILL) once it has put rows on disk."""
    command = [sys.executable, *TORCHRUN, *MODULE, str(run.path)]
    with (run.path / "log.txt").open("wb") as log:
        launcher = launch.start(command, output=log, environment=os.environ)
    try:
        deadline = time.monotonic() + 400
        while not list(run.path.glob("rows/*/*-1of2.parquet")):
            assert launcher.poll() is None, (run.path / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (second,) = (
            child
            for child in psutil.Process(launcher.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        )
        second.send_signal(signal.SIGKILL)
        assert launcher.wait(120) != 0
    finally:
        launch.stop(launcher)


def test_a_killed_rank_costs_only_rows_that_were_not_on_disk(tmp_path: Path, config: BenchmarkRun) -> None:
    broken = RunDir.create(tmp_path / "broken", config)
    kill_one_rank(broken)
    assert not (broken.path / "metrics.json").exists()
    before = kept(broken)
    assert 0 < len(before) < 2 * NUM_PAIRS

    # One process alone goes on with what two left, and another run is never broken.
    log = finish(broken, [])
    assert f"mme: {2 * NUM_PAIRS} rows, {len(before)} of an earlier start" in log
    assert kept(broken).keys() > before.keys()
    whole = RunDir.create(tmp_path / "whole", config)
    finish(whole, TORCHRUN)
    assert scored(broken) == scored(whole)


def finish(run: RunDir, launcher: list[str]) -> str:
    command = [sys.executable, *launcher, *MODULE, str(run.path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-2000:]
    return child.stdout


def scored(run: RunDir) -> tuple[BenchmarkResults, list]:
    """What does not depend on the clock."""
    results = BenchmarkResults.load(run.path / "metrics.json")
    rows = read_asked(run.path / "predictions.parquet")
    assert len(rows) == results.num_scored == 2 * NUM_PAIRS
    timeless = results.model_copy(update={"seconds_per_question": 0.0})
    return timeless, [(row.id, row.prediction, row.score) for row in rows]
