"""Features of pictures by digest: in memory up to a limit, beyond it in files.

A file is written whole and then renamed, holds many pictures' features, and is never changed: any number of
processes may write into one folder at once, and read what the others wrote. A file that is cut off or
unreadable, and features whose check sum is wrong, count as absent; one that a killed process was writing is
removed an hour later. A disk that is full, or a folder that has reached its limit, gets no more files; what
it would have kept is computed again.
"""

import logging
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

# What is dropped from memory at a time: one file instead of one per picture.
_KEPT_WHEN_FULL = 0.75
# A file takes seconds to write: what nobody has written to for so long is of a process that was killed.
_ABANDONED_SECONDS = 3600.0


class FeatureStore:
    """Features by picture digest; in memory the least recently used go first.

    Without ``folder`` they are then forgotten. ``folder`` belongs to one tower in one precision, and holds at
    most ``max_file_bytes``. ``on_host`` keeps them off the device that computed them.
    """

    def __init__(
        self, *, max_bytes: int, folder: Path | None = None, max_file_bytes: int = 0, on_host: bool = False
    ) -> None:
        self._max_bytes, self._max_file_bytes = max_bytes, max_file_bytes
        self._folder, self._on_host = folder, on_host
        self._may_write = True
        self._bytes = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self._known: set[Path] = set()
        self._places: dict[str, list[Path]] = {}
        self._refused: set[str] = set()
        if folder is not None:
            _remove_abandoned(folder)
            self._look_for_files()

    def get(self, digest: str) -> Tensor | None:
        """The features of a picture, or None."""
        if digest in self._entries:
            self._entries.move_to_end(digest)
            return self._entries[digest]
        found = self._read(digest)
        if found is not None:
            self.put({digest: found})
        return found

    def put(self, entries: Mapping[str, Tensor]) -> None:
        """Keep features; every tensor must have its memory for itself."""
        new = {
            digest: tensor.cpu() if self._on_host else tensor
            for digest, tensor in entries.items()
            if digest not in self._entries
        }
        self._entries.update(new)
        self._bytes += sum(tensor.nbytes for tensor in new.values())
        if self._bytes <= self._max_bytes:
            return
        dropped: dict[str, Tensor] = {}
        while self._entries and self._bytes > _KEPT_WHEN_FULL * self._max_bytes:
            digest, tensor = self._entries.popitem(last=False)
            self._bytes -= tensor.nbytes
            dropped[digest] = tensor
        self._write(dropped)

    def forget(self) -> None:
        """Let go of what memory holds; files stay."""
        self._entries.clear()
        self._bytes = 0

    def flush(self) -> None:
        """Write what only memory holds, for other processes and later runs."""
        self._write(dict(self._entries))

    def _read(self, digest: str) -> Tensor | None:
        """Features from the file that holds them, if they are whole."""
        if self._folder is None or digest in self._refused:
            return None
        if digest not in self._places:
            self._look_for_files()
        places = self._places.pop(digest, [])
        for path in places:
            found = _features_in(path, digest)
            if found is not None:
                self._places[digest] = [path]
                return found
        if places:
            self._refused.add(digest)
        return None

    def _look_for_files(self) -> None:
        """Learn what the files hold that were not there before."""
        assert self._folder is not None, "the caller checks"
        for path in sorted(set(self._folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                with safe_open(path, framework="pt") as opened:
                    for digest in opened.keys():  # noqa: SIM118 - it is no dict
                        self._places.setdefault(digest, []).append(path)
            except (OSError, SafetensorError) as error:
                log.warning("%s is left out, its features are computed again: %s", path, error)

    def _write(self, entries: dict[str, Tensor]) -> None:
        """Put into one new file what no file holds, if there is room."""
        if self._folder is None or not self._may_write:
            return
        self._look_for_files()
        new = {digest: tensor for digest, tensor in entries.items() if digest not in self._places}
        if not new:
            return
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if _folder_bytes(self._folder) + sum(one.nbytes for one in new.values()) > self._max_file_bytes:
                raise OSError(f"the limit of {self._max_file_bytes / 1e9:.1f} GB is reached")
            # Rows in memory, wherever they were computed.
            kept = {digest: tensor.cpu().contiguous() for digest, tensor in new.items()}
            save_file(kept, partial, metadata={digest: check_sum(tensor) for digest, tensor in kept.items()})
            partial.rename(path)
        except (OSError, SafetensorError) as error:
            log.warning("no more features are written to %s: %s", self._folder, error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._may_write = False
            return
        self._known.add(path)
        self._places.update((digest, [path]) for digest in new)
        self._refused.difference_update(new)


def _features_in(path: Path, digest: str) -> Tensor | None:
    """One picture's features, if the file holds them whole."""
    try:
        with safe_open(path, framework="pt") as opened:
            # A copy: what safetensors gives is the file itself, which may be cut or changed meanwhile.
            found: Tensor = opened.get_tensor(digest).clone()
            if (opened.metadata() or {}).get(digest) == check_sum(found):
                return found
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read: %s", path, error)
    log.warning("the features of %s in %s are damaged; they are computed again", digest, path)
    return None


def check_sum(tensor: Tensor) -> str:
    """A check sum of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return str(zlib.crc32(flat.view(torch.uint8).numpy().tobytes()))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes had not written to the end."""
    for partial in folder.glob("*.partial"):
        with suppress(OSError):  # another process removes it, or it may not be removed: it is only not used
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink()
