"""Child processes: the only module that starts any.

Heavy work runs in a child, under a supervisor (:mod:`tasks.supervisor`) that takes everything down with it
when the task is cancelled, when Ctrl-C arrives, and when this process dies. A child writes to a log file and
to ``metrics.jsonl``; both are read as they grow. Without a valid ``result.json`` a run has failed, whatever
its exit code was.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import psutil

from models.errors import ChildLostError, GateError, GuardError, LaunchError
from models.rundir import Result, RunDir
from tasks.heartbeats import Watch
from tasks.nodes import Launch, Nodes
from tasks.settings import MEMORY_PER_CHILD_GIB, NODE_SILENCE, Settings, child_environment

GRACE_SECONDS = 20.0  # below Prefect's 30 s, after which it kills the flow's own process
_POLL_SECONDS = 0.25
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
BIN = Path(sys.executable).parent

# A command under the supervisor.
Process = subprocess.Popen[bytes]


class Tail:
    """The lines that were appended to a growing file since the last look; a half-written line waits.

    ``is_new_only`` leaves out what is there already.
    """

    def __init__(self, path: Path, *, is_new_only: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if is_new_only and path.exists() else 0

    def lines(self) -> list[str]:
        """Complete new lines, without their line ends."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode("utf-8", errors="replace").splitlines()


async def run_child(
    module: str,
    run: RunDir,
    *,
    num_ranks: int = 1,
    num_threads: int = 0,
    held: Sequence[TextIO] = (),
    on_start: Callable[[], None] = lambda: None,
    on_line: Callable[[str], None] = lambda line: None,
    on_metrics: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> Result:
    """The result of ``python -m module RUN_DIR``, on ``num_ranks`` ranks, once it has ended well.

    It waits for free cores first (``num_threads`` 0 wants all of them), then calls ``on_start``. ``on_line``
    gets its output line by line, ``on_metrics`` the lines of ``metrics.jsonl``. The child inherits the files
    that are ``held`` (:mod:`models.locks`): should we be killed, they stay taken until it has ended. Raises
    LaunchError with the end of the log when it failed, GuardError when a guard paused it, GateError when it
    refused to begin; however this coroutine is left, no process stays behind.
    """
    log = run.path / "log.txt"
    run.forget_result()
    environment = child_environment(num_threads=num_threads, bin_folder=BIN)
    nodes = Nodes.of(Settings.read())
    ranks = Launch(module, str(run.path), num_ranks, num_threads, began=time.time())
    async with free_cores(num_ranks * (num_threads or num_cores())):
        on_start()
        with nodes.shared(ranks), log.open("ab") as output:
            logged = Tail(log, is_new_only=True)  # earlier tries have told theirs
            process = start(_command(ranks, nodes), output=output, environment=environment, held=held)
            about = {"pid": process.pid, "started": time.time()}
            (run.path / "process.json").write_text(json.dumps(about))
            measured = Tail(run.metrics_path)
            watch = nodes.watch(num_ranks)
            try:
                while process.poll() is None:
                    _require_all(watch, nodes, run)
                    _forward(logged, measured, on_line=on_line, on_metrics=on_metrics)
                    await asyncio.sleep(_POLL_SECONDS)
            finally:
                stop(process)
                with suppress(OSError):  # on a full disk what the child says of it counts
                    (run.path / "process.json").write_text(json.dumps({**about, "ended": time.time()}))
                _forward(logged, measured, on_line=on_line, on_metrics=on_metrics)
    return _checked_result(run, process.returncode, log)


def start(
    command: Sequence[str],
    *,
    output: Any,
    environment: Mapping[str, str],
    grace_seconds: float = GRACE_SECONDS,
    folder: Path | None = None,
    held: Sequence[TextIO] = (),
) -> Process:
    """Start a command under the supervisor, in a session of its own; its output goes to an open file.

    Both inherit the files that are ``held``.
    """
    return subprocess.Popen(
        [sys.executable, "-I", str(_SUPERVISOR), str(grace_seconds), str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        pass_fds=[file.fileno() for file in held],
        start_new_session=True,
    )


def run(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> None:
    """Run a command to its end, its output appended to a log. Raises LaunchError when it fails."""
    with log.open("ab") as output:
        code = start(command, output=output, environment=environment, folder=folder).wait()
    if code:
        raise LaunchError(f"{command[0]} ended with exit code {code}. The end of {log}:\n{end_of(log)}")


def detach(command: Sequence[str], *, log: Path, folder: Path) -> None:
    """Start a command that outlives this process, in a session of its own, in a folder."""
    with log.open("ab") as output:
        subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by a command."""
    os.execvp(command[0], list(command))


def stop(process: Process, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """End a supervised command and everything below it; does nothing when it has ended by itself."""
    if process.poll() is not None:
        if process.returncode < 0:  # somebody killed the supervisor, and so nobody ended what it watched
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(grace_seconds + 5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        for child in below:
            if child.is_running():
                child.kill()


def source_revision(folder: Path) -> str:
    """The git commit of a checkout, with ``+changes`` when files differ from it; empty outside of git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


class _Slots:
    """Who may run now: heavy children share the cores; a second one also needs free memory."""

    def __init__(self) -> None:
        self.running: list[int] = []

    def admits(self, cores: int) -> bool:
        limit = Settings.read().max_children
        if not self.running:
            return True
        if limit:
            return len(self.running) < limit
        enough_cores = sum(self.running) + cores <= num_cores()
        return enough_cores and available_memory_gib() >= MEMORY_PER_CHILD_GIB


_slots = _Slots()


@asynccontextmanager
async def free_cores(wanted: int) -> AsyncIterator[None]:
    """Wait until ``wanted`` cores are free of other heavy children of this process, and hold them."""
    cores = min(wanted, num_cores())
    while not _slots.admits(cores):
        await asyncio.sleep(_POLL_SECONDS)
    _slots.running.append(cores)
    try:
        yield
    finally:
        _slots.running.remove(cores)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory_gib() -> float:
    """Memory that can still be taken, in GiB: of the machine, or of the container when that is less."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return float(free / 2**30)


def gpus() -> list[str]:
    """The NVIDIA GPUs of this machine with memory and driver, in words; empty without the driver's tool."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _require_all(watch: Watch, nodes: Nodes, run: RunDir) -> None:
    if (index := watch.lost()) is not None:
        raise ChildLostError(
            f"{run.path.name}: node {index} of {nodes.count} has given no sign of life for "
            f"{nodes.silence_seconds} s ({NODE_SILENCE}), so its host or the way to it is lost. "
            "The ranks here were ended. Give the same commands again on all nodes: the run goes on from its "
            f"last checkpoint. Its log: {run.path / f'log-node-{index}.txt'}"
        )


def _command(ranks: Launch, nodes: Nodes) -> list[str]:
    launcher = nodes.launcher(ranks.num_ranks) if ranks.num_ranks > 1 else []
    return [sys.executable, *launcher, "-m", ranks.module, ranks.run]


def _forward(
    logged: Tail,
    measured: Tail,
    *,
    on_line: Callable[[str], None],
    on_metrics: Callable[[Mapping[str, Any]], None],
) -> None:
    for line in logged.lines():
        on_line(line)
    for values in _parsed(measured.lines()):
        on_metrics(values)


def _parsed(lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        values = json.loads(line)
        yield values


def _checked_result(run: RunDir, code: int, log: Path) -> Result:
    if not (run.path / "result.json").is_file():
        raise ChildLostError(
            f"{run.path.name}: the child process ended with exit code {code} and left no result.json, so the "
            f"run failed. The end of its log ({log}):\n{end_of(log)}"
        )
    result = run.result()
    if result.status == "cancelled":  # who cancels us never gets here
        raise ChildLostError(
            f"{run.path.name}: the child process was ended with exit code {code}, and not by this command: "
            f"one of its ranks or their launcher was lost, or somebody sent it a signal. The end of its log "
            f"({log}):\n{end_of(log)}"
        )
    if result.status == "paused":
        checkpoint = result.artifacts.get("checkpoint", "")
        raise GuardError(f"{run.path.name} is paused. {result.reason} Its log: {log}", checkpoint=checkpoint)
    if result.status == "refused":
        raise GateError(f"{run.path.name} was not begun. {result.reason} Its log: {log}")
    if result.status != "done":
        raise LaunchError(
            f"{run.path.name}: the run is {result.status}: {result.reason or 'no reason given'}. "
            f"Its log: {log}"
        )
    return result


def end_of(log: Path, lines: int = 20) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
