"""Ranks on two nodes that share a work directory, started as the pods of a job are."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

from models.config import SFTConfig
from models.records import write_records
from models.rundir import RunDir
from tasks.ports import free_port
from tests.killed import last_step
from tests.tiny_models import save_random_model
from tests.training_data import records, sft_run
from tests.two_hosts import WIRE, Host, two_hosts

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


def fine_tuning(work_dir: Path, tmp_path: Path, *, num_epochs: int) -> RunDir:
    """Two ranks; a step per epoch, and a checkpoint per step."""
    write_records(tmp_path / "records.parquet", records(4))
    training = SFTConfig(
        num_epochs=num_epochs,
        batch_size=4,
        learning_rate=1e-2,
        precision="float32",
        zero_stage=2,
        checkpoint_every=1,
        num_ranks=2,
        num_threads=1,
    )
    model_path = save_random_model(tmp_path / "model", tied=False)
    config = sft_run(model_path, tmp_path / "records.parquet", training)
    return RunDir.create(work_dir / "runs" / "sft", config)


def started(
    host: Host, first: Host, index: int, run: RunDir, *, silence: int = 120, output: BinaryIO | None = None
) -> subprocess.Popen[bytes]:
    """What is given on a host: the same command and job on all."""
    job = {
        "VLM_R3_NODES": f"2@{first.address}:29501",
        "VLM_R3_JOB": "two-hosts",
        "JOB_COMPLETION_INDEX": str(index),
        "VLM_R3_NODE_SILENCE": str(silence),
        "VLM_R3_MAX_CHILDREN": "1",
        "GLOO_SOCKET_IFNAME": WIRE,
        "OMP_NUM_THREADS": "1",
    }
    command = host.command(*NODE, "models.sft.train", str(run.path))
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **job}, stdout=output, stderr=output)


def lose(*nodes: subprocess.Popen[bytes]) -> None:
    """SIGKILL to everything on these hosts, at once."""
    lost = [one for node in nodes if node.poll() is None for one in silenced(node)]
    for process in lost:
        process.kill()
    for node in nodes:
        node.wait()


def silenced(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Stop all that runs on a host, without a word to the other: no socket is closed."""
    processes = with_all_below(node.pid)
    for process in processes:
        process.suspend()
    return processes


def with_all_below(pid: int) -> list[psutil.Process]:
    main = psutil.Process(pid)
    return [main, *main.children(recursive=True)]


def reached(run: RunDir, step: int, nodes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the metrics of a step."""
    deadline = time.monotonic() + 200
    while last_step(run) < step:
        assert [node.poll() for node in nodes] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_fine_tuning_on_two_hosts(work_dir: Path, tmp_path: Path) -> None:
    run = fine_tuning(work_dir, tmp_path, num_epochs=3)
    with two_hosts() as hosts:
        nodes = [started(host, hosts[0], index, run) for index, host in enumerate(hosts)]
        try:
            assert [node.wait(300) for node in nodes] == [0, 0]
        finally:
            lose(*nodes)
        sent = [host.bytes_sent() for host in hosts]
    assert run.result().status == "done"
    losses = [line["sft/loss"] for line in run.metrics() if "sft/loss" in line]
    assert losses[2] < losses[1] < losses[0]
    # Three steps reduce the gradient of a quarter of a million weights.
    assert min(sent) > 3 * 250_000 * 4 / 2
    assert (run.path / "model" / "config.json").is_file()
    assert sorted(path.name for path in run.checkpoints()[-1].glob("rng-*")) == ["rng-0.json", "rng-1.json"]


def test_hosts_that_were_lost_go_on_when_they_are_given_the_same_commands(
    work_dir: Path, tmp_path: Path
) -> None:
    run = fine_tuning(work_dir, tmp_path, num_epochs=200)
    with two_hosts() as hosts:
        first, second = hosts
        nodes = [started(first, first, 0, run), started(second, first, 1, run)]
        try:
            reached(run, 3, nodes)
            lose(nodes[1])
            assert nodes[0].wait(60) != 0
            # The first has said that the job has ended, and comes later this time.
            nodes[1] = started(second, first, 1, run)
            nodes[0] = started(first, first, 0, run)
            reached(run, last_step(run) + 3, nodes)
            lose(*nodes)
            # Nobody could say that it has ended.
            nodes = [started(first, first, 0, run), started(second, first, 1, run)]
            assert [node.wait(300) for node in nodes] == [0, 0]
        finally:
            lose(*nodes)
    assert run.result().status == "done"
    assert {line["step"] for line in run.metrics() if "sft/loss" in line} == set(range(1, 201))
    assert (run.path / "log.txt").read_text().count("resumed from") == 2  # by the rank on the first host


def test_a_host_that_falls_silent_is_given_up(work_dir: Path, tmp_path: Path) -> None:
    run = fine_tuning(work_dir, tmp_path, num_epochs=1000)
    said = tmp_path / "said.txt"
    with two_hosts() as hosts, said.open("wb") as output:
        first, second = hosts

        def given(host: Host, index: int) -> subprocess.Popen[bytes]:
            return started(host, first, index, run, silence=10, output=output)

        nodes = [given(first, 0), given(second, 1)]
        try:
            reached(run, 3, nodes)
            silenced(nodes[1])
            assert nodes[0].wait(90) != 0
            assert "node 1 of 2 has given no sign of life for 10 s" in said.read_text()
            lose(nodes[1])
            nodes = [given(first, 0), given(second, 1)]
            reached(run, last_step(run) + 3, nodes)
            silenced(nodes[0])
            wait_until_alone(nodes[1])
            assert "The first node gives no sign of life" in said.read_text()
            # The second host has waited for one that takes its place.
            lose(nodes[0])
            nodes[0] = given(first, 0)
            reached(run, last_step(run) + 3, nodes)
        finally:
            lose(*nodes)
    assert (run.path / "log.txt").read_text().count("resumed from") == 2


def wait_until_alone(node: subprocess.Popen[bytes]) -> None:
    """Wait until the ranks of a node have ended, though it has not."""
    deadline = time.monotonic() + 90
    while len(with_all_below(node.pid)) > 1:
        assert node.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
