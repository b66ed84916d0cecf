"""Ranks on two nodes that share a work directory, started as the pods of a job are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import SFTConfig
from models.records import write_records
from models.run_config import SFTRun
from models.rundir import RunDir
from tasks.ports import free_port
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, records
from tests.two_hosts import WIRE, two_hosts

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STAGE = """
import asyncio
import sys
from pathlib import Path

from models.rundir import RunDir
from tasks.launch import run_child

run = RunDir(Path(sys.argv[2]))
asyncio.run(run_child(sys.argv[1], run, num_ranks=2, num_threads=1))
"""
NODE = (sys.executable, "-m", "tasks.node", sys.executable, "-c", STAGE)


def test_a_stage_has_ranks_on_both_nodes_and_both_end_with_it(work_dir: Path) -> None:
    run = work_dir / "runs" / "ranks"
    run.mkdir(parents=True)
    shared = {"VLM_R3_NODES": f"2@127.0.0.1:{free_port()}", "VLM_R3_JOB": "job-1", "VLM_R3_MAX_CHILDREN": "1"}
    command = [
        sys.executable,
        "-m",
        "tasks.node",
        sys.executable,
        "-c",
        STAGE,
        "tests.rank_that_reports",
        str(run),
    ]
    pods = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **shared, "JOB_COMPLETION_INDEX": str(index)})
        for index in (0, 1)
    ]
    try:
        assert [pod.wait(300) for pod in pods] == [0, 0]
    finally:
        for pod in pods:
            pod.kill()
    assert (run / "rank-0").read_text() == "node 0, group 0"
    assert (run / "rank-1").read_text() == "node 1, group 1"
    assert "rank 1 of 2" in (run / "log-node-1.txt").read_text()


def test_fine_tuning_on_two_hosts(work_dir: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records.parquet", records(4))
    run = RunDir.create(
        work_dir / "runs" / "sft",
        SFTRun(
            model_path=str(save_random_model(tmp_path / "model", tied=False)),
            records_path=str(tmp_path / "records.parquet"),
            look=LOOK,
            sft=SFTConfig(
                num_epochs=3,
                batch_size=4,
                learning_rate=1e-2,
                precision="float32",
                zero_stage=2,
                checkpoint_every=1,
                num_ranks=2,
                num_threads=1,
            ),
            freeze_vision=True,
            seed=0,
        ),
    )
    command = [*NODE, "models.sft.train", str(run.path)]
    with two_hosts() as hosts:
        shared = {
            "VLM_R3_NODES": f"2@{hosts[0].address}:29501",
            "VLM_R3_JOB": "two-hosts",
            "VLM_R3_MAX_CHILDREN": "1",
            "GLOO_SOCKET_IFNAME": WIRE,
            "OMP_NUM_THREADS": "1",
        }
        nodes = [
            subprocess.Popen(
                host.command(*command),
                cwd=ROOT,
                env={**os.environ, **shared, "JOB_COMPLETION_INDEX": str(index)},
            )
            for index, host in enumerate(hosts)
        ]
        try:
            assert [node.wait(300) for node in nodes] == [0, 0]
        finally:
            for node in nodes:
                node.kill()
        sent = [host.bytes_sent() for host in hosts]
    assert run.result().status == "done"
    losses = [line["sft/loss"] for line in run.metrics() if "sft/loss" in line]
    assert losses[2] < losses[1] < losses[0]
    # Three steps reduce the gradient of a quarter of a million weights.
    assert min(sent) > 3 * 250_000 * 4 / 2
    assert (run.path / "model" / "config.json").is_file()
    assert sorted(path.name for path in run.checkpoints()[-1].glob("rng-*")) == ["rng-0.json", "rng-1.json"]
