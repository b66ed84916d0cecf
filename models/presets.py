"""Presets: complete, named runs in ``infra/runs/``, with one override mechanism and helpful refusals."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from models.config import Preset
from models.endpoints import without_user
from models.errors import ConfigError

DEFAULT_PRESET = "tiny"  # where none is named
PRESETS_FOLDER = Path(__file__).resolve().parent.parent / "infra" / "runs"


def preset_names() -> list[str]:
    """The names of the presets that ship with the project."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.yaml"))


def load_preset(name: str, overrides: Sequence[str] = ()) -> Preset:
    """The preset of that name, or of that YAML file, with overrides ``stage.key=value`` applied.

    Raises ConfigError that names the value, the rule, and the nearest known key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(preset_names())
        raise ConfigError(
            f"Preset {name!r} does not exist. Known presets: {known}; or give the path of a YAML file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of stages, not {type(values).__name__}.")
    for override in overrides:
        _apply(values, override)
    try:
        return Preset.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"Override {override!r} is not of the form stage.key=value, for example sft.num_epochs=2."
        )
    *parents, last = key.strip().split(".")
    target: Any = values
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"Override {override!r}: {'.'.join(parents)!r} is a value, not a group of keys.")
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Override {override!r}: the value is not valid YAML: {error}") from error


def _explain(error: ValidationError, path: Path) -> str:
    lines = [f"Preset {path.stem!r} is not valid:"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key.{_nearest(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"  {where}: is required and missing.")
        else:
            lines.append(f"  {where or 'preset'}: {problem['msg']} (found {_shortened(problem['input'])}).")
    return "\n".join(lines)


def _nearest(location: tuple[int | str, ...]) -> str:
    """A hint with the known key nearest to an unknown one."""
    known: Mapping[str, Any] = Preset.model_fields
    for part in location[:-1]:
        annotation = known[str(part)].annotation if str(part) in known else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        known = annotation.model_fields
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
    return f" Did you mean {close[0]!r}?" if close else f" Known keys: {', '.join(known)}."


def _shortened(value: object) -> str:
    text = without_user(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
