"""What orchestration costs: time of a task without work, and the share of a pipeline outside of its children.

    python -m tests.benchmarks.orchestration [--tasks 40] [--preset tiny-smoke] [--work-dir FOLDER]

A task without work goes the way of every stage (:func:`tasks.stage.perform`): a Prefect task with a cache
key, a tracked run in MLflow, the store, a line on the board. The pipeline is run by ``vlm-r3 run`` in a
folder of its own, or looked up in the work directory of one that has ended. Its stages work in child
processes; what remains of its tracked time is orchestration and what tasks do in its own process (keeping
artifacts, the registry, the report), so the share is an upper bound. The limits are 100 ms, and 5 % of
preset tiny.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from models.errors import GateError
from models.presets import load_preset
from models.rundir import write_atomically
from tasks.services import prefect_server
from tasks.settings import prepare

MAX_TASK_MS, MAX_SHARE = 100.0, 0.05
ROOT = Path(__file__).parents[2]
# What a person waits for before the first stage and after the last is no part of the pipeline's tracked time.
_WARM_UP = 3


@contextmanager
def plain_environment(work_dir: Path) -> Iterator[None]:
    """No server of others, the work directory of ours."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(("VLM_R3_", "PREFECT_", "MLFLOW_"))]:
        del os.environ[name]
    try:
        with prefect_server(prepare(work_dir)) as server:
            assert server is not None
            server.wait()
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def time_tasks(work_dir: Path, number: int) -> dict[str, float]:
    """Milliseconds of a task without work, bare and as a stage is performed: medians over ``number``."""
    with plain_environment(work_dir):
        from tests.benchmarks.idle_tasks import idle_flow

        cpu = psutil.Process().cpu_times()
        times = asyncio.run(idle_flow(load_preset("tiny-smoke"), _WARM_UP + number))
        used = psutil.Process().cpu_times()
    stages, bare, cached = ([1000 * one for one in each[_WARM_UP:]] for each in times)
    seconds = used.user + used.system - cpu.user - cpu.system
    return {
        "task of a stage, ms": statistics.median(stages),
        "task of a stage, 90th percentile, ms": statistics.quantiles(stages, n=10)[-1],
        "task from the cache, ms": statistics.median(cached),
        "bare task, ms": statistics.median(bare),
        "CPU of this process over all tasks, s": seconds,
    }


def run_pipeline(work_dir: Path, preset: str) -> None:
    """The whole pipeline, as a user runs it. Raises CalledProcessError; the gate may say no, by code 3."""
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", preset, "--work-dir", str(work_dir)]
    foreign = ("VLM_R3_", "PREFECT_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(command, cwd=ROOT, env=kept, stdin=subprocess.DEVNULL)
    if done.returncode not in (0, GateError.exit_code):
        done.check_returncode()


def shares(work_dir: Path) -> dict[str, float]:
    """Seconds of the last pipeline in a work directory, of its children, and the share of the rest."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{work_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vlm-r3")
    (pipeline, *_) = client.search_runs(
        [experiment.experiment_id], "tags.stage = 'pipeline'", order_by=["attributes.start_time DESC"]
    )
    began, ended = pipeline.info.start_time / 1000, pipeline.info.end_time / 1000
    children = [interval for interval in _children(work_dir) if began <= interval[0] <= ended]
    inside = _covered(children)
    return {
        "pipeline, s": ended - began,
        "children, s": inside,
        "number of children": float(len(children)),
        "share outside of children": 1 - inside / (ended - began),
    }


def _children(work_dir: Path) -> list[tuple[float, float]]:
    """When each child that has ended was started, and when it had ended."""
    found = [json.loads(path.read_text()) for path in work_dir.glob("runs/*/process.json")]
    return sorted((child["started"], child["ended"]) for child in found if "ended" in child)


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one ran; some stages run side by side."""
    total, until = 0.0, 0.0
    for start, end in intervals:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--preset", default="tiny-smoke", help="the pipeline to run; the limit is about tiny")
    parser.add_argument("--work-dir", type=Path, help="where a pipeline has run already")
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        figures = time_tasks(Path(folder) / "tasks", options.tasks)
        if options.work_dir is None:
            run_pipeline(Path(folder) / "pipeline", options.preset)
        figures |= shares(options.work_dir or Path(folder) / "pipeline")
    for name, value in figures.items():
        print(f"{name:40} {value:.3g}")
    print(f"{'all of it, s':40} {time.time() - began:.0f}")
    write_atomically(options.out / "orchestration.json", json.dumps(figures, indent=2) + "\n")
    is_tiny = options.preset == "tiny" or options.work_dir is not None
    too_much = is_tiny and figures["share outside of children"] > MAX_SHARE
    return 1 if too_much or figures["task of a stage, ms"] > MAX_TASK_MS else 0


if __name__ == "__main__":
    sys.exit(main())
