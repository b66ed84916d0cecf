"""What it saves to sample the next step's rollouts while this one is trained.

    python -m tests.benchmarks.overlap [--model FOLDER] [--steps N] [--repeats N] [--threads N]

Seconds per step of R-GRPO, the same questions and settings in three orders: engine and trainer take turns in
one process (``colocate``), in two (``dedicated``), or work at the same time (``rgrpo.overlap``). Every
measurement is a process of its own; orders take turns, and the ratio is the median over the rounds. With
fewer cores than threads of engine and trainer together nothing can be saved. No ratio is demanded: how much
there is to save depends on how alike rollout and update are.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.presets import load_preset
from models.records import write_questions
from models.run_config import RGRPORun
from models.rundir import RunDir, write_atomically
from tests.training_data import questions

NAME = "overlap"
NUM_QUESTIONS = 96
WARM_UP_STEPS = 2
ORDERS: dict[str, dict[str, Any]] = {
    "colocate": {"placement": "colocate"},
    "dedicated": {"placement": "dedicated"},
    "overlap": {"placement": "dedicated", "overlap": True},
}
PARTS = ("rollout", "compare", "update", "sync", "record")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the JSON file, print the table."""
    options = _parser().parse_args(arguments)
    with TemporaryDirectory() as folder:
        write_questions(Path(folder) / "questions.parquet", questions(NUM_QUESTIONS))
        rounds = [
            {name: _measure(options, Path(folder) / f"{name}-{number}", name) for name in ORDERS}
            for number in range(options.repeats)
        ]
    found = {name: _medians([one[name] for one in rounds]) for name in ORDERS}
    ratio = statistics.median(one["dedicated"]["step"] / one["overlap"]["step"] for one in rounds)
    report = {
        "benchmark": NAME,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "seconds": found,
        "dedicated_over_overlap": ratio,
    }
    write_atomically(Path(options.out), json.dumps(report, indent=2))
    print(f"{'seconds per step':18}{'step':>8}" + "".join(f"{part:>10}" for part in PARTS))
    for name, seconds in found.items():
        print(f"{name:18}{seconds['step']:8.2f}" + "".join(f"{seconds[part]:10.2f}" for part in PARTS))
    print(f"dedicated in turn takes {ratio:.2f} times as long as with overlap")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the engine, and of the trainer")
    parser.add_argument("--out", default=f".vlm-r3/bench/{NAME}.json")
    return parser


def _measure(options: argparse.Namespace, path: Path, name: str) -> dict[str, float]:
    """Median seconds of a step and of its parts, in one run of a process of its own."""
    preset = load_preset(
        "tiny", ["rgrpo.profile=standard", f"rgrpo.num_steps={options.steps}", "rgrpo.learning_rate=1e-5"]
    )
    training = preset.rgrpo.without_trust().model_copy(
        update={"num_threads": options.threads, "checkpoint_every": options.steps, **ORDERS[name]}
    )
    config = RGRPORun(
        model_path=options.model,
        questions_path=str(path.parent / "questions.parquet"),
        look=preset.look,
        rgrpo=training,
        engine=preset.engine.model_copy(update={"num_threads": options.threads}),
        freeze_vision=True,
        seed=0,
    )
    run = RunDir.create(path, config)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "models.rgrpo.train", str(path)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [line for line in run.metrics() if line["step"] >= WARM_UP_STEPS]
    ends = [line["time"] for line in lines]
    parts = {part: [line.get(f"time/{part}_seconds", 0.0) for line in lines[1:]] for part in PARTS}
    steps = [after - before for before, after in pairwise(ends)]
    return {"step": statistics.median(steps)} | {
        part: statistics.median(seconds) for part, seconds in parts.items()
    }


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


if __name__ == "__main__":
    sys.exit(main())
