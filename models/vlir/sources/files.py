"""Pictures that rows only name: found inside their folder, and nowhere else."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from models.errors import RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.faults import BadRow, shown

# A name that leads nowhere; anything else is a failure of the disk, and not of the row.
_NOWHERE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.ENXIO),
)


class PictureFolder:
    """A folder of pictures. What lies outside it is not read, whichever way a name leads there."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self._root = os.path.realpath(folder)
        self._max_bytes = max_bytes

    def read(self, name: str) -> bytes:
        """The bytes of a file, by a name relative to the folder or by a path inside it.

        Raises BadRow: outside the folder, missing, too large; RecordError when the disk fails.
        """
        return self.read_first((name,))

    def read_first(self, names: Iterable[str]) -> bytes:
        """The bytes of the first of these files that is there."""
        names = tuple(names)
        for name in names:
            data = self._read(name)
            if data is not None:
                return data
        where = f"; looked for {', '.join(names)}" if len(names) > 1 else ""
        raise BadRow(FaultKind.MISSING_IMAGE, f"there is no picture {shown(names[0])}{where}")

    def _read(self, name: str) -> bytes | None:
        if not name or "\0" in name:
            raise BadRow(FaultKind.BAD_ADDRESS, f"{shown(name)} is no name of a file")
        try:
            path = os.path.realpath(os.path.join(self._root, name))
            if not path.startswith(self._root.rstrip(os.sep) + os.sep):
                raise BadRow(FaultKind.OUTSIDE_FOLDER, f"{shown(name)} leaves the folder of pictures")
            return self._content(path, name)
        except UnicodeEncodeError as error:
            raise BadRow(FaultKind.NOT_UTF8, f"{shown(name)} holds half a character") from error
        except OSError as error:
            if error.errno in _NOWHERE:
                return None
            raise RecordError(
                f"{self.folder}: {shown(name)} cannot be read ({error.strerror}). That is no fault of the "
                "row: see to the disk and start again."
            ) from error

    def _content(self, path: str, name: str) -> bytes | None:
        # Opening without waiting: a named pipe would block for ever.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size > self._max_bytes:
                raise BadRow(
                    FaultKind.TOO_LARGE_IMAGE,
                    f"{shown(name)} has {status.st_size} bytes, over the limit of {self._max_bytes} bytes",
                )
            with os.fdopen(file, "rb", closefd=False) as opened:
                return opened.read()
        finally:
            os.close(file)
