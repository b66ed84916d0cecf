"""Files that one process at a time holds, and that are free again however that process ended."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)

# What a file system says that has no locks, such as Lustre without its option ``flock``.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


def take(path: Path) -> TextIO | None:
    """The file, held until it is closed here and in every child that inherited it; None when it is taken.

    Its text says who holds it (:func:`holder`). On a file system without locks everybody gets it, and is
    warned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        log.warning("%s: no locks here (%s). See to it that one process works there.", path, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who holds the file, or held it last, in words."""
    return (path.read_text() if path.exists() else "") or "unknown"
