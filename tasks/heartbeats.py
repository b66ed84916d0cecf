"""Signs of life that the nodes of a job give each other in the work directory that they share.

A host that loses its power or its network says nothing: its sockets stay open, and ranks wait for its ranks
until PyTorch's timeout of half an hour. So every node touches a file of its own, and who sees another's
unchanged for long enough gives it up.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_BEAT_SECONDS = 2.0
_LOOK_SECONDS = 1.0
# When the file of a node had been touched when this process first looked at it.
_FIRST_SEEN: dict[Path, int] = {}
# Below it a busy host or a cache of the file system would pass for a loss.
LEAST_SILENCE_SECONDS = 10


def _file(folder: Path, index: int) -> Path:
    return folder / f"alive-{index}"


class Heart:
    """What node ``index`` shows the others; :meth:`beat` is to be called again and again."""

    def __init__(self, folder: Path, index: int) -> None:
        self._path = _file(folder, index)
        self._last = float("-inf")

    def beat(self) -> None:
        """Touch the file, at most every few seconds. Needs no space on the disk once the file is there."""
        if time.monotonic() - self._last >= _BEAT_SECONDS:
            self._last = time.monotonic()
            with suppress(OSError):  # what the disk lacks is told by the stage, which needs more of it
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch()


class Watch:
    """Which of the ``others`` has been silent for ``seconds``; 0 never gives anybody up.

    Looks are counted, not the time between them: while the shared file system hangs, nobody can look, and
    nobody can beat. A node counts from its first beat in the life of this process on, for it may be started
    later than this one; what an earlier launch of the job has left is no beat.
    """

    def __init__(self, folder: Path, others: Sequence[int], *, seconds: int) -> None:
        self._paths = {index: _file(folder, index) for index in others} if seconds else {}
        self._most = seconds / _LOOK_SECONDS
        self._seen = {index: _touched(path) for index, path in self._paths.items()}
        first = {
            index: _FIRST_SEEN.setdefault(path, self._seen[index]) for index, path in self._paths.items()
        }
        self._unchanged = {index: 0 for index in first if self._seen[index] != first[index]}
        self._last = time.monotonic()

    def lost(self) -> int | None:
        """The node that has been silent for too long, None while there is none; to be asked all the time."""
        if time.monotonic() - self._last < _LOOK_SECONDS:
            return None
        self._last = time.monotonic()
        for index, path in self._paths.items():
            touched = _touched(path)
            if touched != self._seen[index]:
                self._seen[index] = touched
                self._unchanged[index] = 0
            elif index in self._unchanged:
                self._unchanged[index] += 1
                if self._unchanged[index] >= self._most:
                    return index
        return None


def _touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
