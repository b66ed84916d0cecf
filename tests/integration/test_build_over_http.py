"""``vlm-r3 build-vlir --manifest ... --teacher URL`` against vLLM's real server, and in process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.records import VLIRRecord, read_records
from tests.drawn_manifest import write_drawn_manifest
from tests.model_server import model_server

pytestmark = pytest.mark.integration

NUM_QUESTIONS = 24
GREEDY = "vlir.teacher.temperatures=[0.0]"
LIMITS = ("vlir.num_samples=1", "vlir.max_teacher_tokens=80", "vlir.teacher.prompts=look-again", GREEDY)


def build(work_dir: Path, manifest: Path, *options: str) -> list[VLIRRecord]:
    """Every try of a build by the command line, in the order of the questions."""
    sets = [word for each in LIMITS for word in ("--set", each)]
    command = [str(Path(sys.executable).with_name("vlm-r3")), "build-vlir", "--preset", "tiny"]
    done = subprocess.run(
        [*command, "--manifest", str(manifest), *options, *sets, "--work-dir", str(work_dir)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CI": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (work_dir / "runs").glob("build_vlir-*/vlir")
    statistics = sorted(path.name for path in (folder / "statistics").iterdir())
    assert statistics == ["figure3.csv", "figure3.md", "figure3.png", "figure3.svg"]
    tries = [
        record for name in ("records", "validation", "rejected") for record in read_records(folder / name)
    ]
    return sorted(tries, key=lambda record: record.question.id)


def test_a_teacher_behind_the_server_writes_what_it_writes_in_process(tmp_path: Path) -> None:
    manifest = write_drawn_manifest(tmp_path / "mine", NUM_QUESTIONS, kinds={"read": 0.5, "where": 0.5})
    with model_server(tmp_path / "log") as endpoint:
        remote = build(tmp_path / "remote", manifest, "--teacher", endpoint, "--judge", "none")
    local = build(tmp_path / "local", manifest, "--teacher", "embedded", "--judge", "none")
    assert {record.teacher for record in remote} == {"tiny"}
    assert {record.teacher for record in local} == {"embedded"}
    assert [record.question.id for record in remote] == [record.question.id for record in local]
    assert [record.text for record in remote] == [record.text for record in local]
    assert [record.reason for record in remote] == [record.reason for record in local]
    with manifest.open() as file:
        asked = {f"manifest-{json.loads(line)['id']}" for line in file}
    assert {record.question.id for record in remote} <= asked
    assert len(remote) > NUM_QUESTIONS // 2
