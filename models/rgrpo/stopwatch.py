"""Where the seconds of a step go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name, added up until :meth:`lap`; those of a block within a block are the inner one's."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inner = 0.0  # of the blocks within the present one

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block, with what it leaves a GPU to do."""
        began, before = time.monotonic(), self._inner
        self._inner = 0.0
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elapsed = time.monotonic() - began
        self._seconds[name] = self._seconds.get(name, 0.0) + elapsed - self._inner
        self._inner = before + elapsed

    def lap(self) -> dict[str, float]:
        """Metrics ``time/<name>_seconds`` since the last lap."""
        found, self._seconds = self._seconds, {}
        return {f"time/{name}_seconds": seconds for name, seconds in found.items()}
