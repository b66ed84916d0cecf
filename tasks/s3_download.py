"""Fetch many objects into one folder: in parallel parts, continued after an interruption, complete or not
there.

While it grows the folder is ``NAME.partial``: ``files/`` has the bytes, ``notes/`` which parts of a file are
whole. It takes its name when every file is complete and has the digest that was asked for.
"""

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import ArtifactError, StoreError
from models.rundir import NO_ROOM, write_atomically
from tasks.artifacts import OnProgress
from tasks.s3 import NUM_CONNECTIONS, S3, RemoteObject

PART_SIZE = 16 << 20
# Left free on the disk, so that a download does not stop everything else.
_SPARE_BYTES = 64 << 20
_NOTE_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object and its place below the folder. An empty ``sha256`` is not checked."""

    found: RemoteObject
    name: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    wanted: Wanted
    number: int
    start: int
    stop: int


def download(
    s3: S3,
    wanted: Sequence[Wanted],
    target: Path,
    *,
    on_progress: OnProgress,
    extra: dict[str, str] | None = None,
    part_size: int = PART_SIZE,
) -> Path:
    """The folder with all wanted objects, and the small files ``extra`` (text by name); at once if it is
    there.

    Raises StoreError when there is no room or the store does not deliver, ObjectChangedError when an object
    changes meanwhile, ArtifactError when one has another digest than was asked for.
    """
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.partial")
    with _alone(partial):
        if target.is_dir():
            return target
        run = _Download(s3, partial, part_size, on_progress, sum(each.found.size for each in wanted))
        run.fetch(wanted)
        for each in wanted:
            run.finish(each)
        for name, text in (extra or {}).items():
            write_atomically(partial / "files" / name, text)
        (partial / "files").rename(target)
        shutil.rmtree(partial)
        return target


@dataclass
class _Download:
    s3: S3
    folder: Path
    part_size: int
    on_progress: OnProgress
    total: int
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Every part that is not here yet."""
        parts = [part for each in wanted for part in self._missing(each)]
        missing = sum(part.stop - part.start for part in parts)
        self._done = self.total - missing
        self._check_room(missing)
        with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="s3-download") as pool:
            waiting = [pool.submit(self._fetch_part, part) for part in parts]
            try:
                for each in as_completed(waiting):
                    each.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def finish(self, wanted: Wanted) -> None:
        """Check a file that has all its parts; a wrong one is removed, so that the next start fetches it."""
        path = self._file(wanted)
        path.chmod(0o444)
        if not wanted.sha256:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.sha256:
            path.unlink()
            self._note(wanted).unlink(missing_ok=True)
            raise ArtifactError(
                f"{wanted.found.uri} has sha256 {found[:12]}, its manifest says {wanted.sha256[:12]}: the "
                "object was damaged or replaced. Publish the artifact again."
            )

    def _missing(self, wanted: Wanted) -> Iterator[_Part]:
        """The parts of a file without a note; makes the file, so that an empty one is there too."""
        path, note = self._file(wanted), self._note(wanted)
        whole: set[int] = set()
        header = f"{wanted.found.etag} {self.part_size}"
        if path.is_file() and note.is_file():
            first, *lines = note.read_text(encoding="utf-8").split("\n")
            if first == header:
                # Of one length: a line that was cut short, and what was written behind it, does not count.
                whole = {int(line) for line in lines if len(line) == _NOTE_LENGTH and line.isdigit()}
        if not whole:
            for place in (path, note):
                place.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(b"")
            note.write_text(header + "\n", encoding="utf-8")
        for number, start in enumerate(range(0, wanted.found.size, self.part_size)):
            if number not in whole:
                yield _Part(wanted, number, start, min(start + self.part_size, wanted.found.size))

    def _fetch_part(self, part: _Part) -> None:
        try:
            self._write(part)
        except FileNotFoundError as error:
            raise StoreError(f"{error} It was there a moment ago. Start again.") from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StoreError(
                f"{self.folder}: no room for {part.wanted.name} ({error.strerror}). Make room and start "
                "again: what was fetched is kept."
            ) from error

    def _write(self, part: _Part) -> None:
        file = os.open(self._file(part.wanted), os.O_WRONLY)
        try:
            place = part.start
            for block in self.s3.blocks(part.wanted.found, part.start, part.stop):
                if self._stop.is_set():
                    return
                _write_all(file, block, place)
                place += len(block)
                self._advance(len(block))
            os.fdatasync(file)
        finally:
            os.close(file)
        with self._lock, self._note(part.wanted).open("a", encoding="utf-8") as note:
            note.write(f"{part.number:0{_NOTE_LENGTH}d}\n")

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            self.on_progress(self._done, self.total)

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if missing and missing + _SPARE_BYTES > free:
            raise StoreError(
                f"{self.folder}: {missing / 1e9:.2f} GB are to be fetched and {free / 1e9:.2f} GB are free. "
                "Make room, or choose another disk by --work-dir; what was fetched is kept."
            )

    def _file(self, wanted: Wanted) -> Path:
        return self.folder / "files" / wanted.name

    def _note(self, wanted: Wanted) -> Path:
        return self.folder / "notes" / f"{hashlib.sha256(wanted.name.encode()).hexdigest()[:24]}"


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """One process at a time fetches a folder; the others wait and find it there."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_all(file: int, data: bytes, place: int) -> None:
    """A write may stop short where the disk ends."""
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written
