"""Builds of any size, for the benchmarks of data generation: a generated manifest, and the real child process
on it, with a simulated teacher at an endpoint and nobody to judge.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from models.config import EngineConfig, FilterJudge, QuestionMix, SourceConfig, TeacherConfig, VLIRConfig
from models.presets import load_preset
from models.run_config import VLIRRun
from models.rundir import RunDir

NUM_CONNECTIONS = 256
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


def make_run(folder: Path, num_rows: int, endpoint: str, *, asked: float = 1.0) -> RunDir:
    """A run directory that asks for a build; of the rows, a share of ``asked`` is put to the teacher."""
    preset = load_preset("tiny")
    engine = preset.engine.model_dump() | {
        "kind": "http",
        "endpoint": endpoint,
        "served_model": "m",
        "max_num_seqs": NUM_CONNECTIONS,
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
    return RunDir.create(folder / "run", request)


def build(run: RunDir) -> dict[str, float]:
    """Build once, for real: peak memory (GiB) of the process and of those it started, CPU and wall seconds,
    and records.
    """
    began = time.monotonic()
    child = psutil.Popen(
        [sys.executable, "-m", "models.vlir.build", str(run.path)], stdout=subprocess.DEVNULL
    )
    peak, cpu_seconds = {}, {}
    while child.poll() is None:
        for process in (child, *_children(child)):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    cpu_seconds[process.pid] = times.user + times.system
                    resident = process.memory_info().rss / 2**30
                    peak[process.pid] = max(peak.get(process.pid, 0.0), resident)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    result = run.result()
    assert result.status == "done", result.reason
    return {
        "records": result.metrics["vlir/records"],
        "processes": len(peak),
        "peak GiB": sum(peak.values()),
        "CPU seconds": sum(cpu_seconds.values()),
        "seconds": time.monotonic() - began,
    }


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found
