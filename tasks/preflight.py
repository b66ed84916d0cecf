"""What can be known to be wrong before anything is started, and the report of what was looked at."""

import json
from pathlib import Path
from urllib.parse import urlsplit

from models.check import Check, Preflight
from models.config import Preset, resolve_model_path
from models.errors import ConfigError, TrackingError
from tasks.endpoint_models import get, without_password
from tasks.settings import Settings

# Schemes of a tracker's address: servers, then databases that hold a registry.
_TRACKERS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file")


def preflight(preset: Preset, settings: Settings) -> Preflight:
    """The report that a version carries; all of its checks are kept.

    Raises ConfigError for a preset that cannot run here, TrackingError when the tracker does not answer.
    """
    return Preflight(checks=(*check_preset(preset), check_tracker(settings)))


def check_preset(preset: Preset) -> tuple[Check, ...]:
    """What is kept. Raises ConfigError for a preset that cannot run here, whatever happens later."""
    folder = resolve_model_path(preset.model.path)
    if preset.engine.kind in ("http", "vllm-server"):
        raise ConfigError(
            f"engine.kind is {preset.engine.kind!r}. Training and evaluation load checkpoints into the "
            "engine, which a server cannot do. Use 'vllm' or 'transformers'."
        )
    preset.rgrpo.require_fit_with(preset.engine)
    return (
        _kept("base model", folder.name, "a folder in Hugging Face layout without pickled weights"),
        _check_pixel_factor(folder, preset.look.pixel_factor),
        _kept("engine", preset.engine.kind, "an engine that takes checkpoints"),
        _kept(
            "micro-batch",
            f"{preset.rgrpo.tokens_per_micro_batch} tokens",
            f"room for the longest rollout, {preset.engine.max_model_len} tokens",
        ),
    )


def _check_pixel_factor(folder: Path, factor: int) -> Check:
    """Raise ConfigError for pictures that the model's tower cannot cut into whole visual tokens."""
    vision = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config")
    if vision is None:
        raise ConfigError(
            f"{folder} has no vision tower: its config.json has no vision_config. Name a vision-language "
            "model of the layout of Qwen2.5-VL."
        )
    # What transformers takes where a published file leaves them out.
    unit = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)
    if factor % unit:
        raise ConfigError(
            f"look.pixel_factor is {factor}, and a visual token of {folder.name} is {unit} pixels wide "
            "(patch size x merge size): pictures could not be cut into whole tokens. Set "
            f"look.pixel_factor={unit}."
        )
    return _kept("pixel factor", f"{factor}", f"a multiple of the model's {unit}")


def check_tracker(settings: Settings) -> Check:
    """Ask the tracker for its health, once.

    Raises TrackingError when it is a server that does not answer, ConfigError for an address of nothing.
    """
    name, rule = "tracker", "it answers, so that what is run is recorded"
    scheme = urlsplit(settings.tracking_uri).scheme.partition("+")[0]
    if scheme and scheme not in _TRACKERS:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {without_password(settings.tracking_uri)!r}; MLflow knows a server "
            f"(http, https) and databases ({', '.join(_TRACKERS[2:])}). Name one of these, or leave it unset."
        )
    if not scheme.startswith("http"):
        return _kept(name, "a database of this machine", rule)
    place = without_password(settings.tracking_uri)
    try:
        get(settings.tracking_uri.rstrip("/") + "/health")
    except ConfigError as error:
        raise TrackingError(
            f"Nothing was started, because the tracker does not answer: {error} Start it, or set "
            "MLFLOW_TRACKING_URI to another one."
        ) from error
    return _kept(name, place, rule)


def _kept(name: str, value: str, rule: str) -> Check:
    return Check(name=name, value=value, rule=rule, passed=True)
