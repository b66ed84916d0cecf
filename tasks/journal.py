"""A journal: numbered entries that are written once and never changed, in a folder or under a prefix of S3.

Entry N is created only where there is none, so of two writers exactly one gets it, and the other sees who
did. That is all that promotion needs of a store to be safe (docs/operations.md).
"""

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from models.errors import StoreError
from tasks.artifacts import local_path
from tasks.uris import S3_SCHEME, S3Uri

_NAME = re.compile(r"(\d{6})\.json")


class Journal(Protocol):
    """Entries by number, from 1, without a gap."""

    def last(self) -> int:
        """The number of the newest entry, 0 when there is none."""

    def read(self, number: int) -> str:
        """The text of an entry. Raises StoreError when there is none."""

    def create(self, number: int, text: str) -> bool:
        """Write an entry, whole or not at all; False when there is one."""


def open_journal(place: str) -> Journal:
    """The journal at ``file://`` or ``s3://``, with or without entries so far."""
    return S3Journal(place) if place.startswith(S3_SCHEME) else FileJournal(place)


def new_place(root: str) -> str:
    """A place for a new journal in the artifact store at ``root``, like no other.

    Its name is none of an artifact, so retention leaves it alone (:mod:`tasks.retention`).
    """
    return f"{root.rstrip('/')}/history/registry-{secrets.token_hex(8)}"


class FileJournal:
    """Entries in a folder of this machine, or of one that it mounts."""

    def __init__(self, place: str) -> None:
        self._folder = local_path(place)

    def last(self) -> int:
        """The number of the newest entry, 0 when there is none."""
        if not self._folder.is_dir():
            return 0
        return _newest(path.name for path in self._folder.iterdir())

    def read(self, number: int) -> str:
        """The text of an entry. Raises StoreError when there is none."""
        try:
            return self._path(number).read_text(encoding="utf-8")
        except OSError as error:
            path = self._path(number)
            raise StoreError(f"{path} cannot be read: {error}. Restore it from a backup.") from error

    def create(self, number: int, text: str) -> bool:
        """Write an entry beside its place and link it there, which the file system does for one writer."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._path(number)
        partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            target.hardlink_to(partial)
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error}. Make room, or allow it.") from error
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _path(self, number: int) -> Path:
        return self._folder / _name(number)


class S3Journal:
    """Entries under a prefix of a bucket, each put with ``If-None-Match``."""

    def __init__(self, place: str) -> None:
        from tasks.s3 import S3

        self._s3, self._place = S3(), S3Uri.parse(place)

    def last(self) -> int:
        """The number of the newest entry, 0 when there is none."""
        return _newest(self._place.name_of(found.uri) for found in self._s3.objects(self._place))

    def read(self, number: int) -> str:
        """The text of an entry. Raises StoreError when there is none."""
        found = self._s3.find(self._place.child(_name(number)))
        if found is None:
            raise StoreError(f"{self._place.child(_name(number))} is missing. Restore it from a backup.")
        return self._s3.read(found).decode("utf-8")

    def create(self, number: int, text: str) -> bool:
        """Write an entry; the store refuses it where there is one."""
        created = self._s3.put(self._place.child(_name(number)), text.encode(), if_absent=True)
        # A reply may be lost on its way: the next try then meets our own entry.
        return created or self.read(number) == text


def _newest(names: Iterable[str]) -> int:
    numbers = [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]
    return max(numbers, default=0)


def _name(number: int) -> str:
    return f"{number:06d}.json"
