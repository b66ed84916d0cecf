"""A small process between us and a heavy child, so that nothing the child starts can outlive the run.

    python -I supervisor.py GRACE_SECONDS PARENT_PID COMMAND...

It adopts every orphaned descendant (Linux's child subreaper), so that even a rank that moved into a session
of its own stays findable. When it is told to end (SIGTERM, SIGINT), when its parent is gone, or when the
command has ended, nothing below it stays alive. Standard library only: it runs beside every child.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_ENDING = {signal.SIGTERM, signal.SIGINT}
_WATCHED = {signal.SIGCHLD, *_ENDING}
# How often it looks whether its parent still lives, and how long leftovers get between SIGTERM and SIGKILL.
_POLL_SECONDS = 0.2
_LEFTOVER_SECONDS = 1.0


def supervise(command: list[str], *, grace_seconds: float, parent: int) -> int:
    """Run the command to its end or ours. Returns its exit status, 128 + signal when a signal ended it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    main = os.posix_spawnp(command[0], command, os.environ, setsigmask=[])
    status: int | None = None
    deadline = float("inf")
    while status is None and time.monotonic() < deadline:
        received = signal.sigtimedwait(_WATCHED, _POLL_SECONDS)
        # After a pause (SIGSTOP, SIGCONT; a frozen container) Python returns a signal that nobody has sent.
        told_to_end = received is not None and received.si_signo in _ENDING
        if (told_to_end or os.getppid() != parent) and deadline == float("inf"):
            os.kill(main, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
        status = _reap(main)
    ended = _end_descendants(main)
    return _exit_code(status if status is not None else ended)


def _reap(main: int) -> int | None:
    """Collect every child that has ended; the wait status of ``main`` when it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == main:
            found = status


def _end_descendants(main: int) -> int | None:
    """End whatever is left, first politely. Returns the wait status of ``main`` if it was among them."""
    status = None
    for number, seconds in ((signal.SIGTERM, _LEFTOVER_SECONDS), (signal.SIGKILL, float("inf"))):
        until = time.monotonic() + seconds
        left = descendants(os.getpid())
        while left and time.monotonic() < until:
            for pid in left:
                _send(pid, number)
            time.sleep(0.02)
            found = _reap(main)
            status = found if found is not None else status
            left = descendants(os.getpid())
    return status


def descendants(root: int) -> set[int]:
    """All processes below ``root`` that are not zombies, read from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:  # it ended while we looked
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, number)


def _exit_code(status: int | None) -> int:
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[3:], grace_seconds=float(sys.argv[1]), parent=int(sys.argv[2])))
