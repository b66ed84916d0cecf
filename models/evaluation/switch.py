"""One engine for many models: only the weights are exchanged where the architecture is the same.

Starting an engine takes far longer than reloading one, and an evaluation measures many checkpoints of one
model.
"""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Protocol

from models.engine import Engine

log = logging.getLogger(__name__)

# Keys of config.json that do not change what an engine must build.
_NO_ARCHITECTURE = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})


class Engines(Protocol):
    """Where engines come from."""

    def open(self, model_path: Path) -> Engine:
        """A new engine with the weights of that folder."""

    def reload(self, engine: Engine, model_path: Path) -> Engine:
        """The engine with the weights of another folder of the same architecture; the old one is used up."""


class EngineSwitch:
    """The one engine in use, moved from model to model."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._engine: Engine | None = None
        self._model_path = Path()

    def use(self, model_path: Path) -> Engine:
        """An engine with the weights of that folder; the one returned before is no longer valid."""
        started = time.monotonic()
        if self._engine is not None and architecture(self._model_path) != architecture(model_path):
            self.close()
        if self._engine is None:
            self._engine = self._engines.open(model_path)
        elif self._model_path != model_path:
            self._engine = self._engines.reload(self._engine, model_path)
        self._model_path = model_path
        log.info("engine ready for %s after %.1f s", model_path, time.monotonic() - started)
        return self._engine

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def architecture(model_path: Path) -> str:
    """What an engine must build for this folder, comparable: equal where only the weights differ."""
    config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    return json.dumps(_without_names(config), sort_keys=True)


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _without_names(config: object) -> object:
    """The nested configuration without the keys that name things."""
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key not in _NO_ARCHITECTURE}
    return config
