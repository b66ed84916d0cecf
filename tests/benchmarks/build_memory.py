"""What a build takes of memory and time as its manifest grows: peak RSS of its process, against rows.

    python -m tests.benchmarks.build_memory [--rows N ...] [--asked SHARE]

Every row of a generated manifest is a question of its own about one of 500 small pictures. The build is the
real child process with a teacher over HTTP (:mod:`tests.simulated_teacher`, without delay) and no judges, so
every row is read three times, asked, cropped, filtered, journalled and written. To ask a teacher a million
questions takes hours: with ``--asked 0.02`` the other rows are read and kept for the test split.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from models.config import EngineConfig, FilterJudge, QuestionMix, SourceConfig, TeacherConfig, VLIRConfig
from models.presets import load_preset
from models.run_config import VLIRRun
from models.rundir import RunDir, write_atomically
from tests.simulated_teacher import Simulated, teaching

NAME = "build_memory"
MAX_GROWTH_GIB = 1.5
_NUM_PICTURES = 500
_SIDE = 112
_NUM_QUESTIONS = 960  # for R-GRPO, as preset tiny has them


def write_manifest(folder: Path, num_rows: int) -> Path:
    """A manifest of so many rows, and its pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_NUM_PICTURES):
        pixels = rng.integers(0, 255, (_SIDE // 8, _SIDE // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((_SIDE, _SIDE))
        picture.save(folder / f"{number}.jpg", quality=85)
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for number in range(num_rows):
            row = {
                "image": f"{number % _NUM_PICTURES}.jpg",
                "question": f"Question {number}: what does the corner say?",
                "answer": "K7",
            }
            file.write(json.dumps(row) + "\n")
    return path


def measure(folder: Path, num_rows: int, teacher: Simulated, *, asked: float) -> dict[str, float]:
    """Build once; peak memory in GiB, seconds, and records."""
    preset = load_preset("tiny")
    engine = preset.engine.model_dump() | {
        "kind": "http",
        "endpoint": teacher.url,
        "served_model": "m",
        "max_num_seqs": 256,
    }
    nobody = FilterJudge(kind="none")
    request = VLIRRun(
        vlir=VLIRConfig(
            sources=(SourceConfig(kind="manifest", data=str(write_manifest(folder / "data", num_rows))),),
            teacher=TeacherConfig(kind="http", engine=EngineConfig.model_validate(engine), prompts="paper"),
            semantic_unit=nobody,
            coherence=nobody,
            **({"test_share": 1 - asked, "validation_share": 0.0} if asked < 1 else {}),
        ),
        look=preset.look,
        engine=preset.engine,
        seed=0,
        rgrpo_questions=QuestionMix(num_questions=_NUM_QUESTIONS, kinds={}),
        evaluation_questions=QuestionMix(num_questions=_NUM_QUESTIONS, kinds={}),
    )
    run = RunDir.create(folder / "run", request)
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "models.vlir.build", str(run.path)], stdout=subprocess.DEVNULL
    )
    peak = 0.0
    process = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            resident = process.memory_info().rss / 2**30
        except psutil.NoSuchProcess:
            break
        peak = max(peak, resident)
        time.sleep(0.1)
    child.wait()
    result = run.result()
    assert result.status == "done", result.reason
    return {
        "rows": num_rows,
        "records": result.metrics["vlir/records"],
        "peak GiB": peak,
        "seconds": time.monotonic() - began,
    }


def interpreter_gib() -> float:
    """What Python takes with everything imported that a build imports."""
    program = (
        "import models.vlir.build, models.http_engine, psutil; print(psutil.Process().memory_info().rss)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(output.stdout) / 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--asked", type=float, default=1.0, help="share of rows that the teacher is asked")
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    base = interpreter_gib()
    print(f"{'rows':>9} {'records':>9} {'peak GiB':>9} {'beyond the interpreter':>23} {'seconds':>9}")
    found = []
    with teaching(0.0) as teacher:
        for num_rows in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(Path(folder), num_rows, teacher, asked=options.asked)
            figures["beyond the interpreter, GiB"] = figures["peak GiB"] - base
            found.append(figures)
            print(
                f"{num_rows:9d} {figures['records']:9.0f} {figures['peak GiB']:9.3f} "
                f"{figures['peak GiB'] - base:23.3f} {figures['seconds']:9.0f}",
                flush=True,
            )
    write_atomically(
        options.out / f"{NAME}.json", json.dumps({"interpreter GiB": base, "builds": found}, indent=2) + "\n"
    )
    return 0 if max(figures["beyond the interpreter, GiB"] for figures in found) <= MAX_GROWTH_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
