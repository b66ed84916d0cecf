"""The frame of a stage, in real child processes: what they leave behind."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from models.child import EXIT_CANCELLED
from models.config import SFTConfig
from models.rundir import RunDir

SCRIPT = """
import sys, time
from models import child
from models.child import run_stage
from models.config import SFTConfig
from models.errors import GateError, GuardError, TrainingError
from models.rundir import Result

def work(run, config):
    assert isinstance(config, SFTConfig)
    {body}

child._PATIENCE_SECONDS = {patience}
sys.exit(run_stage(work, SFTConfig, sys.argv[1:]))
"""


def start(run, body, *, patience=60.0, **environment):
    script = SCRIPT.format(body=body, patience=patience)
    command = [sys.executable, "-c", script, str(run.path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run", SFTConfig())


def at_work(run, **environment):
    """A process that is at work in the run directory until it is ended."""
    process = start(run, "(run.path / 'working').touch(); time.sleep(60)", **environment)
    deadline = time.monotonic() + 60
    while not (run.path / "working").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_result_is_written_with_its_seconds(run):
    process = start(run, "time.sleep(0.05); return Result(status='done', artifacts={'model': 'model'})")
    assert process.wait(60) == 0
    assert run.result().artifacts == {"model": "model"}
    assert run.result().seconds >= 0.05


def test_our_error_is_a_failed_result_with_its_reason(run):
    process = start(run, "raise TrainingError('3 samples: a, b, c')")
    assert process.wait(60) == 1
    assert run.result().status == "failed"
    assert run.result().reason == "TrainingError: 3 samples: a, b, c"


def test_a_disk_that_is_full_is_a_failed_result(run):
    process = start(run, "raise OSError(28, 'No space left on device', 'rollouts/step-3.parquet')")
    assert process.wait(60) == 1
    assert "Traceback" not in process.stdout.read()
    assert "rollouts/step-3.parquet'). Make room and start again" in run.result().reason


def test_a_guard_pauses_and_names_the_last_good_checkpoint(run):
    process = start(run, "raise GuardError('it stopped to look', checkpoint='checkpoints/step-2')")
    assert process.wait(60) == 3
    result = run.result()
    assert (result.status, result.reason) == ("paused", "it stopped to look")
    assert result.artifacts == {"checkpoint": "checkpoints/step-2"}


def test_a_gate_that_says_no_is_a_refusal(run):
    process = start(run, "raise GateError('rewards do not differ')")
    assert process.wait(60) == 3
    assert (run.result().status, run.result().reason) == ("refused", "rewards do not differ")


def test_a_bug_leaves_a_traceback_and_no_result_not_even_an_old_one(run):
    (run.path / "result.json").write_text(json.dumps({"status": "done"}))
    process = start(run, "return 1 / 0")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ZeroDivisionError" in output
    assert not (run.path / "result.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_says_cancelled(run, number):
    process = at_work(run)
    process.send_signal(number)
    assert process.wait(60) == EXIT_CANCELLED
    assert run.result().status == "cancelled"


def test_the_reason_of_a_rank_that_failed_survives_the_end_of_the_others(run):
    # The launcher ends rank 0 after rank 1 has failed and written why.
    body = (
        "run.finish(Result(status='failed', reason='of rank 1')); import os, signal; os.kill(os.getpid(), 15)"
    )
    process = start(run, body + "; time.sleep(60)")
    process.wait(60)
    assert run.result().reason == "of rank 1"


def test_another_kind_of_configuration_is_refused(run):
    (run.path / "config.json").write_text('{"num_epoch": 3}')
    process = start(run, "return Result(status='done')")
    assert process.wait(60) == 2
    assert "num_epoch" in run.result().reason


def test_only_the_main_rank_writes_success(run):
    process = start(run, "return Result(status='done')", RANK="1")
    assert process.wait(60) == 0
    assert not (run.path / "result.json").exists()


def test_a_second_process_is_refused_and_leaves_the_result_to_the_first(run):
    first = at_work(run)
    try:
        second = start(run, "(run.path / 'result.json').touch()", patience=0.2)
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"{run.path} is in use: process {first.pid} on " in output
        assert "Traceback" not in output
        assert not (run.path / "result.json").exists()
    finally:
        first.kill()
        first.wait()


def test_a_first_process_that_is_about_to_end_is_waited_for(run):
    first = at_work(run)
    second = start(run, "return Result(status='done')")
    time.sleep(1.0)
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.wait(60) == 0
    assert run.result().status == "done"


def test_who_waits_for_another_and_is_told_to_end_says_nothing_of_the_run(run):
    first = at_work(run)
    try:
        second = start(run, "return Result(status='done')")
        time.sleep(3.0)
        second.send_signal(signal.SIGTERM)
        second.wait(60)
        assert not (run.path / "result.json").exists()
    finally:
        first.kill()
        first.wait()


def test_a_rank_that_is_told_to_end_leaves_that_to_the_main_rank(run):
    process = at_work(run, RANK="1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CANCELLED
    assert not (run.path / "result.json").exists()


def test_a_run_directory_that_cannot_be_written_to_is_said_so(run):
    (run.path / "lock").mkdir()
    process = start(run, "return Result(status='done')")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{run.path} cannot be written to" in output
    assert "Traceback" not in output


def test_a_rank_of_torchrun_does_not_outlive_it(run):
    body = "(run.path / 'rank').write_text(str(__import__('os').getpid())); time.sleep(60)"
    script = SCRIPT.format(body=body, patience=60.0)
    starter = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", starter, script, str(run.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"TORCHELASTIC_RUN_ID": "some"},
    )
    deadline = time.monotonic() + 60
    while not (path := run.path / "rank").exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    rank = psutil.Process(int(path.read_text()))
    launcher.kill()
    launcher.wait()
    rank.wait(5)
