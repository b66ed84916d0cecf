"""A build from one's own manifest, with a teacher over HTTP: interrupted, it asks only what is left."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from models.config import EngineConfig, FilterJudge, QuestionMix, SourceConfig, TeacherConfig, VLIRConfig
from models.presets import load_preset
from models.records import read_records
from models.run_config import VLIRRun
from models.rundir import RunDir
from tests.simulated_teacher import Simulated, teaching

pytestmark = pytest.mark.integration

NUM_ROWS = 150
PRESET = load_preset("tiny")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions to which the simulated teacher knows the answer; every fifth has another one."""
    folder = tmp_path_factory.mktemp("mine")
    lines = []
    for number in range(NUM_ROWS):
        Image.new("RGB", (112, 112), (number, 255 - number, 7)).save(folder / f"{number}.png")
        answer = "Z9" if number % 5 == 0 else "K7"
        row = {"id": str(number), "image": f"{number}.png", "question": "what code?", "answer": answer}
        lines.append(json.dumps(row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_run(folder: Path, manifest: Path, endpoint: str, **changes: object) -> RunDir:
    """A run directory that asks for a build."""
    engine = PRESET.engine.model_dump() | {
        "kind": "http",
        "endpoint": endpoint,
        "served_model": "simulated",
        "max_num_seqs": 16,
        "backoff_seconds": 0.05,
    }
    nobody = FilterJudge(kind="none")
    values = {
        "sources": (SourceConfig(kind="manifest", data=str(manifest)),),
        "teacher": TeacherConfig(kind="http", engine=EngineConfig.model_validate(engine), prompts="paper"),
        "semantic_unit": nobody,
        "coherence": nobody,
        "shard_size": 20,
        "num_samples": 2,
    }
    request = VLIRRun(
        vlir=VLIRConfig.model_validate({**values, **changes}),
        look=PRESET.look,
        engine=PRESET.engine,
        seed=0,
        rgrpo_questions=QuestionMix(num_questions=40, kinds={}),
        evaluation_questions=QuestionMix(num_questions=10, kinds={}),
    )
    return RunDir.create(folder, request)


def build(run: RunDir, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "models.vlir.build", str(run.path)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def digests(run: RunDir) -> dict[str, str]:
    folder = run.path / "vlir"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_a_killed_build_asks_only_what_is_missing_and_gives_the_same_bytes(
    manifest: Path, tmp_path: Path
) -> None:
    with teaching(0.02) as whole:
        first = make_run(tmp_path / "whole", manifest, whole.url)
        assert build(first).wait() == 0
        needed = num_requests(whole)
        assert build(first).wait() == 0
        assert num_requests(whole) == needed, "a finished build asks nothing"
    with teaching(0.1) as broken:
        second = make_run(tmp_path / "broken", manifest, broken.url)
        for least in (40, 120):
            child = build(second)
            _wait_for(broken, least)
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert build(second).wait() == 0
        # What was in flight when it was killed is lost; what was answered is not.
        in_flight = 2 * 16 * 2
        assert num_requests(broken) <= needed + in_flight
    assert digests(second) == digests(first)


def test_every_question_has_a_record_or_every_try_with_its_reason(manifest: Path, tmp_path: Path) -> None:
    with teaching(0.0) as teacher:
        run = make_run(tmp_path / "run", manifest, teacher.url)
        assert build(run).wait() == 0
    folder = run.path / "vlir"
    accepted = [*read_records(folder / "records"), *read_records(folder / "validation")]
    rejected = read_records(folder / "rejected")
    assert all(int(record.question.id.rpartition("-")[2]) % 5 for record in accepted)
    wrong = {record.question.id for record in rejected}
    assert {record.reason for record in rejected} == {"wrong_answer"}
    assert len(rejected) == 2 * len(wrong)
    summary = json.loads((folder / "manifest.json").read_text())
    asked = summary["train"]["num_questions"] + summary["validation"]["num_questions"]
    assert len(accepted) + len(wrong) == asked
    assert {record.prompt_id for record in accepted} == {"listing-1"}
    assert {record.teacher for record in accepted} == {"simulated"}


def test_a_teacher_that_is_gone_stops_the_build_and_its_return_finishes_it(
    manifest: Path, tmp_path: Path
) -> None:
    with teaching(0.0, faults=["500"]) as teacher:
        run = make_run(tmp_path / "run", manifest, teacher.url)
        log = tmp_path / "log"
        with log.open("wb") as out:
            assert build(run, stdout=out, stderr=out).wait() == 1
        assert "more than vlir.max_failed_share" in run.result().reason
        assert "run the stage again" in run.result().reason


def num_requests(teacher: Simulated) -> int:
    return sum(teacher.counts().values())


def _wait_for(teacher: Simulated, least: int) -> None:
    deadline = time.monotonic() + 60
    while num_requests(teacher) < least:
        assert time.monotonic() < deadline, "the build does not ask"
        time.sleep(0.02)
