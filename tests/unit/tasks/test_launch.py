"""Children do not outlive their run, and what they say arrives while they say it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import BaseModel

from models import locks
from models.errors import ChildLostError, GateError, GuardError, LaunchError, VLMR3Error
from models.rundir import RunDir
from tasks import launch

# A child that starts two grandchildren: one in a session of its own whose parent ends at once (as a daemon
# does), one that ignores SIGTERM. It writes their pids, then does what argv asks.
FAMILY = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
run = Path(sys.argv[1])
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
stubborn = subprocess.Popen([sys.executable, "-S", "-c", sleeper])
daemon_maker = (
    "import subprocess, sys;"
    " p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'],"
    " stdout=subprocess.DEVNULL, start_new_session=True); print(p.pid)"
)
made = subprocess.run([sys.executable, "-S", "-c", daemon_maker], stdout=subprocess.PIPE, text=True)
daemon = int(made.stdout)
(run / "pids.partial").write_text(json.dumps([os.getpid(), stubborn.pid, daemon]))
(run / "pids.partial").rename(run / "pids.json")
if json.loads((run / "config.json").read_text())["then"] == "wait":
    time.sleep(600)
(run / "result.json").write_text(json.dumps({"status": "done"}))
"""

TALKER = """
import json, sys, time
from pathlib import Path
run = Path(sys.argv[1])
config = json.loads((run / "config.json").read_text())
for step in range(3):
    print("line", step)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "time": 0.0, "train/loss": 1.0 / (step + 1)}) + "\\n")
    while config["then"] == "go on when heard" and not (run / f"heard line {step}").exists():
        time.sleep(0.01)
if config["then"] in ("result", "go on when heard"):
    result = {"status": "done", "artifacts": {"model": "model"}, "seconds": 1.5}
    (run / "result.json").write_text(json.dumps(result))
elif config["then"] == "failed":
    (run / "result.json").write_text(json.dumps({"status": "failed", "reason": "loss is not finite"}))
elif config["then"] in ("paused", "refused"):
    kept = {"checkpoint": "checkpoints/step-2"}
    result = {"status": config["then"], "reason": "no crops", "artifacts": kept}
    (run / "result.json").write_text(json.dumps(result))
elif config["then"] == "lose a rank":
    print("exitcode  : -9 (pid: 7)  (SIGKILL)")  # what the launcher says, before it ends the other ranks
    (run / "result.json").write_text(json.dumps({"status": "cancelled", "reason": "asked to end"}))
    sys.exit(1)
elif config["then"] == "malformed":
    (run / "result.json").write_text("{}")
"""


class ChildConfig(BaseModel):
    then: str


@pytest.fixture
def run_dir(tmp_path: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "family.py").write_text(FAMILY)
    (modules / "talker.py").write_text(TALKER)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    return tmp_path / "run"


def alive(pids: list[int]) -> list[int]:
    return [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def wait_for_pids(run_dir: Path) -> list[int]:
    deadline = time.monotonic() + 120
    while not (run_dir / "pids.json").exists():
        assert time.monotonic() < deadline, (run_dir / "log.txt").read_text()
        time.sleep(0.05)
    pids = json.loads((run_dir / "pids.json").read_text())
    assert alive(pids) == pids
    return pids


def assert_gone(pids: list[int], within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pids) == []


def test_output_and_metrics_arrive_while_the_child_runs(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="go on when heard"))
    lines: list[str] = []
    metrics: list[float] = []

    def on_line(line: str) -> None:
        lines.append(line)
        (run_dir / f"heard {line}").touch()  # the child waits for it

    began = time.time()
    result = asyncio.run(
        launch.run_child(
            "talker", run, on_line=on_line, on_metrics=lambda values: metrics.append(values["train/loss"])
        )
    )
    assert lines == ["line 0", "line 1", "line 2"]
    assert metrics == [1.0, 0.5, 1.0 / 3]
    assert result.artifacts == {"model": "model"}
    about = json.loads((run_dir / "process.json").read_text())
    assert began <= about["started"] < about["ended"] <= time.time()


@pytest.mark.parametrize(
    ("then", "says"),
    [
        ("nothing", "left no result.json"),
        ("failed", "loss is not finite"),
        ("malformed", "malformed"),
    ],
)
def test_a_run_without_a_good_result_has_failed_whatever_its_exit_code(
    run_dir: Path, then: str, says: str
) -> None:
    run = RunDir.create(run_dir, ChildConfig(then=then))
    with pytest.raises(Exception, match=says) as caught:
        asyncio.run(launch.run_child("talker", run))
    assert caught.value.exit_code == 1  # type: ignore[attr-defined]


def test_a_rank_that_was_killed_is_no_cancellation(run_dir: Path) -> None:
    # The launcher ends the other ranks, of which the first then says that it was asked to end.
    run = RunDir.create(run_dir, ChildConfig(then="lose a rank"))
    with pytest.raises(ChildLostError, match=r"exit code 1, and not by this command(.|\n)*SIGKILL"):
        asyncio.run(launch.run_child("talker", run))


@pytest.mark.parametrize(("then", "error"), [("paused", GuardError), ("refused", GateError)])
def test_a_guard_and_a_gate_are_no_failure_of_the_child(
    run_dir: Path, then: str, error: type[VLMR3Error]
) -> None:
    run = RunDir.create(run_dir, ChildConfig(then=then))
    with pytest.raises(error, match="no crops") as caught:
        asyncio.run(launch.run_child("talker", run))
    assert caught.value.exit_code == 3
    assert getattr(caught.value, "checkpoint", "checkpoints/step-2") == "checkpoints/step-2"


def test_what_an_earlier_try_said_is_not_said_again_but_its_metrics_count(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="result"))
    (run_dir / "log.txt").write_text("Traceback of the try before\n")
    run.log(0, {"train/loss": 2.0})
    lines: list[str] = []
    metrics: list[float] = []
    asyncio.run(
        launch.run_child(
            "talker",
            run,
            on_line=lines.append,
            on_metrics=lambda values: metrics.append(values["train/loss"]),
        )
    )
    assert lines == ["line 0", "line 1", "line 2"]
    assert metrics == [2.0, 1.0, 0.5, 1.0 / 3]


def test_a_stale_result_is_not_read(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="nothing"))
    (run_dir / "result.json").write_text('{"status": "done"}')
    with pytest.raises(LaunchError, match="left no result"):
        asyncio.run(launch.run_child("talker", run))


def test_cancelling_leaves_no_process(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="wait"))

    async def cancelled() -> list[int]:
        child = asyncio.create_task(launch.run_child("family", run))
        pids = await asyncio.to_thread(wait_for_pids, run_dir)
        child.cancel()
        with pytest.raises(asyncio.CancelledError):
            await child
        return pids

    assert alive(asyncio.run(cancelled())) == []


def test_a_supervisor_that_is_killed_leaves_no_process(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="wait"))

    async def lost() -> list[int]:
        child = asyncio.create_task(launch.run_child("family", run))
        pids = await asyncio.to_thread(wait_for_pids, run_dir)
        os.kill(json.loads((run_dir / "process.json").read_text())["pid"], signal.SIGKILL)
        with pytest.raises(ChildLostError, match="exit code -9"):
            await child
        return pids

    pids = asyncio.run(lost())
    try:
        assert_gone(pids[:2], within_seconds=10.0)  # the third, in a session of its own, nobody can find
    finally:
        for pid in alive(pids):
            os.kill(pid, signal.SIGKILL)


def test_a_child_that_ends_well_takes_its_leftovers_with_it(run_dir: Path) -> None:
    run = RunDir.create(run_dir, ChildConfig(then="end"))
    result = asyncio.run(launch.run_child("family", run))
    assert result.status == "done"
    assert alive(json.loads((run_dir / "pids.json").read_text())) == []


PARENT = """
import asyncio, sys
from pathlib import Path
from models.rundir import RunDir
from tasks.launch import run_child
asyncio.run(run_child("family", RunDir.open(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_parent_that_is_ended_by_a_signal(
    run_dir: Path, number: signal.Signals
) -> None:
    RunDir.create(run_dir, ChildConfig(then="wait"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(run_dir)], stderr=subprocess.DEVNULL)
    try:
        pids = wait_for_pids(run_dir)
        supervisor = json.loads((run_dir / "process.json").read_text())["pid"]
        os.kill(parent.pid, number)
        parent.wait(timeout=30)
    finally:
        parent.kill()
    assert_gone([*pids, supervisor], within_seconds=60)


def test_a_child_that_is_paused_goes_on_afterwards(work_dir: Path) -> None:
    """Python's sigtimedwait makes up a signal when it is interrupted that long."""
    process = launch.start(["sleep", "600"], output=subprocess.DEVNULL, environment=os.environ)
    try:
        supervisor = psutil.Process(process.pid)
        while not (below := supervisor.children()):
            time.sleep(0.01)
        time.sleep(0.3)  # it watches
        supervisor.suspend()
        time.sleep(0.5)  # longer than it waits for a signal
        supervisor.resume()
        time.sleep(0.5)
        assert process.poll() is None
        assert alive([below[0].pid])
    finally:
        launch.stop(process)


HOLDER = """
import asyncio, sys
from pathlib import Path
from models.rundir import RunDir
from models import locks
from tasks.launch import run_child
run = RunDir.open(Path(sys.argv[1]))
asyncio.run(run_child("family", run, held=[locks.take(run.path / "lock")]))
"""


def test_what_a_killed_parent_held_is_free_only_when_its_children_have_ended(run_dir: Path) -> None:
    RunDir.create(run_dir, ChildConfig(then="wait"))
    parent = subprocess.Popen([sys.executable, "-c", HOLDER, str(run_dir)], stderr=subprocess.DEVNULL)
    try:
        pids = wait_for_pids(run_dir)
        supervisor = psutil.Process(json.loads((run_dir / "process.json").read_text())["pid"])
        supervisor.suspend()  # it ends nobody yet
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(timeout=30)
        assert alive(pids) == pids
        assert locks.take(run_dir / "lock") is None
        supervisor.resume()
        while (file := locks.take(run_dir / "lock")) is None:
            time.sleep(0.01)
    finally:
        parent.kill()
    file.close()
    assert alive(pids) == []


def test_two_children_run_together_only_when_allowed(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def most_together(limit: str) -> int:
        monkeypatch.setenv("VLM_R3_MAX_CHILDREN", limit)
        running = most = 0

        async def one() -> None:
            nonlocal running, most
            async with launch.free_cores(1):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.05)
                running -= 1

        await asyncio.gather(*(one() for _ in range(4)))
        return most

    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.01)
    assert asyncio.run(most_together("1")) == 1
    assert asyncio.run(most_together("3")) == 3


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    tail = launch.Tail(path)
    assert tail.lines() == []
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert tail.lines() == ['{"a": 1}']
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert tail.lines() == ['{"b": 2}']
    assert tail.lines() == []
