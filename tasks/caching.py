"""When a stage may be skipped: same inputs by digest, same configuration, same sources.

A task's key is made of the digests of its input artifacts, its resolved configuration and the sources of the
code that does the work. Where artifacts lie, and what a run is called, do not count.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from pydantic import BaseModel

from models.errors import ChildLostError, ObjectChangedError, StoreError, TrackingError
from tasks.artifacts import ArtifactRef
from tasks.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
# Seconds before a lost stage is tried again, and before it is tried for the last time.
_RETRY_DELAYS = [10.0, 60.0]
# Parameters that say where something is recorded or shown, not what is made.
NOT_INPUTS = frozenset({"label", "parent"})


def cached(stage: str, *modules: str) -> dict[str, Any]:
    """Options of a Prefect task whose result is kept and found again; ``modules`` do its work."""

    def key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
        # What is found again lies in this store: one cache may serve several work directories.
        store = hashlib.sha256(Settings.read().artifacts.encode()).hexdigest()
        return f"{cache_key(stage, modules, parameters)}-{store[:8]}"

    return {
        "name": stage,
        "cache_policy": CacheKeyFnPolicy(cache_key_fn=key),
        "persist_result": True,
        "result_serializer": "json",
        "retries": Settings.read().retries,
        "retry_delay_seconds": _RETRY_DELAYS,
        "retry_condition_fn": _is_worth_a_retry,
    }


def may_pass(error: object) -> bool:
    """Whether the same work may succeed when it is tried again, without anybody changing anything.

    A stage writes only under its digest and goes on from its last checkpoint, so trying again is safe. A lost
    child, a store and a tracker may come back; a refused preset, data or model will be refused again.
    """
    return isinstance(error, ChildLostError | StoreError | TrackingError) and not isinstance(
        error, ObjectChangedError
    )


def _is_worth_a_retry(task: Any, run: Any, state: State[Any]) -> bool:
    return may_pass(state.data)


def cache_key(stage: str, modules: tuple[str, ...], parameters: Mapping[str, Any]) -> str:
    """The identity of a piece of work, for example ``sft-0f3a...``."""
    inputs = {name: _plain(value) for name, value in parameters.items() if name not in NOT_INPUTS}
    identity = {"inputs": inputs, "code": code_version(*modules)}
    text = json.dumps(identity, sort_keys=True)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@lru_cache(maxsize=32)
def code_version(*modules: str) -> str:
    """Digest of the sources of these modules and of everything in ``models`` that they import."""
    digest = hashlib.sha256()
    for path in sorted(sources(*modules)):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(*modules: str) -> set[Path]:
    """The source files of these modules and of what they import from ``models``, directly or not."""
    found: set[Path] = set()
    waiting = [path for module in modules for path in _files(module)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


def _imported(path: Path) -> list[Path]:
    """Files of ``models`` that a source file imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [file for name in names if name.split(".")[0] == "models" for file in _files(name)]


def _files(module: str) -> list[Path]:
    """The file of a module, and the packages it lies in; nothing for a name that is no module."""
    parts = module.split(".")
    path = ROOT.joinpath(*parts)
    own = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    packages = [ROOT.joinpath(*parts[:count], "__init__.py") for count in range(1, len(parts))]
    return [*own, *(file for file in packages if file.is_file())] if own else []


def _plain(value: Any) -> Any:
    """JSON of an input; an artifact counts by its content alone."""
    if isinstance(value, ArtifactRef):
        return {"artifact": value.sha256, "kind": value.kind}
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if isinstance(value, str | int | float | bool | None):
        return value
    raise TypeError(
        f"{type(value).__name__} has no stable identity, so it cannot be an input of a cached task."
    )
