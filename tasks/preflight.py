"""What can be known to be wrong before anything is started."""

from models.config import Preset, resolve_model_path
from models.errors import ConfigError


def check_preset(preset: Preset) -> None:
    """Raise ConfigError for a preset that cannot run here, whatever happens later."""
    resolve_model_path(preset.model.path)
    if preset.engine.kind in ("http", "vllm-server"):
        raise ConfigError(
            f"engine.kind is {preset.engine.kind!r}. Training and evaluation load checkpoints into the "
            "engine, which a server cannot do. Use 'vllm' or 'transformers'."
        )
