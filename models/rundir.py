"""One directory per run: the boundary between orchestration and a child process, readable by a person.

``config.json`` (resolved), ``metrics.jsonl`` (one line per step, names ``area/name``), ``rollouts/``,
``checkpoints/step-N/`` (written beside, then renamed) and ``result.json`` (status, reason, artifacts). No
``result.json``, or a malformed one, is a failure whatever the exit code was.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import RunDirError

CHECKPOINTS = "checkpoints"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what a disk that is full says
ROLLOUTS = "rollouts"  # the folder with every step's rollouts
PROBES = "probes"  # the folder with the answers of every probe
_METRIC_PART = r"[A-Za-z0-9_@](?:[A-Za-z0-9_@. -]*[A-Za-z0-9_@])?"  # the tracker takes no more
_METRIC_NAME = re.compile(rf"[a-z0-9_]+(?:/{_METRIC_PART})+")
_LONGEST_PART = 60
_STEP = re.compile(r"step-\d+")
_REMOVED, _PARTIAL = ".removed", ".partial"


class Result(BaseModel):
    """What a run came to. ``artifacts`` maps a name to a path relative to the run directory.

    ``paused``: a guard stopped it, and it may go on from its last checkpoint; ``refused``: a gate let it not
    begin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["done", "failed", "cancelled", "paused", "refused"]
    reason: str = ""
    artifacts: dict[str, str] = {}
    metrics: dict[str, float] = {}
    seconds: float = 0.0


class RunDir:
    """A run directory. Create it in the parent, open it in the child."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: BaseModel, *, may_change: bool = False) -> "RunDir":
        """A new run directory with its resolved configuration. An earlier unfinished run of the same config
        is kept.

        Raises RunDirError when the directory holds a run of another configuration, unless ``may_change``: the
        caller then knows that what is there stays true.
        """
        resolved = config.model_dump_json(indent=2)
        target = path / "config.json"
        if not may_change and target.exists() and target.read_text() != resolved:
            raise RunDirError(
                f"{path} holds a run of another configuration. Choose another directory or remove it."
            )
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(target, resolved)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run directory. Raises RunDirError when there is no ``config.json``, or a file where one
        of its folders goes."""
        if not (path / "config.json").is_file():
            raise RunDirError(f"{path} is not a run directory: it has no config.json.")
        for folder in (path / CHECKPOINTS, path / ROLLOUTS):
            if folder.exists() and not folder.is_dir():
                raise RunDirError(f"{folder} is a file, and a folder goes there. Move it away; start again.")
        return cls(path)

    def config_text(self) -> str:
        """The resolved configuration, JSON."""
        return (self.path / "config.json").read_text()

    @property
    def metrics_path(self) -> Path:
        """The one source of metrics."""
        return self.path / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics; values that are not finite are left out, as JSON has no word for them.

        Raises RunDirError for a name that is not ``area/name``.
        """
        wrong = [name for name in metrics if not _METRIC_NAME.fullmatch(name)]
        if wrong:
            raise RunDirError(f"Metric names {wrong} are not of the form area/name (letters, digits, _).")
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        with self.metrics_path.open("a+b") as file:
            _cut_unfinished_line(file)
            file.write(f"{line}\n".encode())

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every complete line so far, oldest first. Raises RunDirError when one is damaged."""
        if self.metrics_path.exists():
            # What follows the last line break is still being written.
            for number, line in enumerate(self.metrics_path.read_bytes().split(b"\n")[:-1], start=1):
                yield self._measured(line, number)

    def _measured(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunDirError(
                f"{self.metrics_path}, line {number} is damaged ({error}). Remove this line and start again: "
                "what was measured there is then missing."
            ) from error

    def last_metrics(self, step: int) -> dict[str, float]:
        """What was said last of every metric, up to a step, but of the progress."""
        found: dict[str, Any] = {}
        for line in self.metrics():
            if line["step"] <= step:
                found |= line
        return {
            name: value
            for name, value in found.items()
            if _METRIC_NAME.fullmatch(name) and not name.startswith("progress/")
        }

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """A directory to save into; it becomes ``checkpoints/step-N`` only when the block succeeds.

        It is on the disk before it has that name: a machine that loses its power leaves it whole or not at
        all.
        """
        target = self.path / CHECKPOINTS / f"step-{step}"
        partial = target.with_name(target.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            flush(path)
        remove(target)
        partial.rename(target)
        flush(target.parent)

    def checkpoints(self) -> list[Path]:
        """The folders of the complete checkpoints, the newest last."""
        complete = (path for path in self._in_checkpoints() if _STEP.fullmatch(path.name))
        return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))

    def keep_checkpoints(self, count: int) -> None:
        """Remove all but the newest ``count`` checkpoints, and what was left of one that was interrupted."""
        for path in self.checkpoints()[:-count]:
            remove(path)
        for path in self._in_checkpoints():
            if path.name.endswith((_REMOVED, _PARTIAL)):
                # NFS keeps what somebody reads: it goes with a later checkpoint.
                shutil.rmtree(path, ignore_errors=True)

    def _in_checkpoints(self) -> list[Path]:
        folder = self.path / CHECKPOINTS
        return list(folder.iterdir()) if folder.is_dir() else []

    def forget_result(self) -> None:
        """Remove the result of an earlier try, and what one that was interrupted had begun to write."""
        for path in self.path.glob("result.json*"):
            path.unlink(missing_ok=True)

    def finish(self, result: Result) -> None:
        """Write ``result.json``; the run is over."""
        write_atomically(self.path / "result.json", result.model_dump_json(indent=2))

    def result(self) -> Result:
        """What the run came to. Raises RunDirError when it left no valid result."""
        target = self.path / "result.json"
        if not target.is_file():
            raise RunDirError(f"{self.path}: the run left no result.json, so it failed. Its log says why.")
        try:
            return Result.model_validate_json(target.read_text())
        except ValidationError as error:
            raise RunDirError(f"{target} is malformed, so the run counts as failed: {error}") from error


def remove(folder: Path) -> None:
    """Remove a folder, if there is one. It loses its name first: nobody finds a part of it."""
    removed = folder.with_name(folder.name + _REMOVED)
    if folder.is_dir():
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, without a second copy where the file system allows that."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def metric_part(text: str) -> str:
    """What a user named, such as a kind of question, as part of a metric's name.

    As it is where the tracker takes that, else readable with a digest: two texts never have one name.
    """
    if len(text) <= _LONGEST_PART and re.fullmatch(_METRIC_PART, text):
        return text
    readable = re.sub(r"[^A-Za-z0-9]+", "_", text[:_LONGEST_PART]).strip("_")
    return f"{readable}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _cut_unfinished_line(file: BinaryIO) -> None:
    """Take back what a process that was killed, or a disk that was full, left of a last line."""
    end = file.seek(0, os.SEEK_END)
    if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def flush(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)
