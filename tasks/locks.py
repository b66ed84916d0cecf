"""Files that one process at a time holds, and that are free again however that process ended."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO


def take(path: Path) -> TextIO | None:
    """The file, held until it is closed here and in every child that inherited it; None when it is taken.

    Its text says who holds it (:func:`holder`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who holds the file, or held it last, in words."""
    return (path.read_text() if path.exists() else "") or "unknown"
