"""Ranks on two nodes: two processes that share a work directory, started as the pods of a job are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.services import free_port

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STAGE = """
import asyncio
import sys
from pathlib import Path

from models.rundir import RunDir
from tasks.launch import run_child

run = RunDir(Path(sys.argv[1]))
asyncio.run(run_child("tests.rank_that_reports", run, num_ranks=2, num_threads=1))
"""


def test_a_stage_has_ranks_on_both_nodes_and_both_end_with_it(work_dir: Path) -> None:
    run = work_dir / "runs" / "ranks"
    run.mkdir(parents=True)
    shared = {"VLM_R3_NODES": f"2@127.0.0.1:{free_port()}", "VLM_R3_JOB": "job-1", "VLM_R3_MAX_CHILDREN": "1"}
    command = [sys.executable, "-m", "tasks.node", sys.executable, "-c", STAGE, str(run)]
    pods = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **shared, "JOB_COMPLETION_INDEX": str(index)})
        for index in (0, 1)
    ]
    try:
        assert [pod.wait(120) for pod in pods] == [0, 0]
    finally:
        for pod in pods:
            pod.kill()
    assert (run / "rank-0").read_text() == "node 0, group 0"
    assert (run / "rank-1").read_text() == "node 1, group 1"
    assert "rank 1 of 2" in (run / "log-node-1.txt").read_text()
