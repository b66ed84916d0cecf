"""Known models that can be rows beside ours, each with its settings: ``infra/baselines.yaml``."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from models.config import Config, resolve_model_path
from models.errors import ConfigError
from models.run_config import DirectPrompt

BASELINES_FILE = Path(__file__).resolve().parent.parent / "infra" / "baselines.yaml"

# What every open model runs with: vLLM's server of our own, alone on the machine.
_OPEN = {"engine.kind": "vllm-server", "engine.gpu_memory_utilization": 0.9, "engine.timeout_seconds": 600}
# What every endpoint of others runs with. An image inside an assistant's message is vLLM's own extension.
_CLOSED = {"engine.kind": "http", "engine.continuation": "user_turn"}


class Baseline(Config):
    """A model, how it is asked, and how it is run. Open models have weights, closed ones an endpoint."""

    name: str
    published: str = Field(description="Label of its row in the paper's Table 1.")
    licence: str
    repository: str = Field("", description="Where its weights are: a Hugging Face id.")
    architecture: str = Field("", description="As config.json and vLLM name it.")
    last_vllm: str = Field("", description="The last release of vLLM that ran it; empty: today's does.")
    endpoint: str = Field("", description="Base URL of a closed model.")
    served_model: str = Field("", description="Its name there.")
    preset: str = Field("paper-7b", description="The preset that its settings change.")
    direct: DirectPrompt = DirectPrompt()
    settings: dict[str, Any] = Field({}, description="Overrides of the preset, stage.key: value.")
    crop_note: str = Field("", description="What to know about its rows with the crop tool.")

    @model_validator(mode="after")
    def _is_open_or_closed(self) -> "Baseline":
        has_weights, has_endpoint = bool(self.repository), bool(self.endpoint)
        if has_weights == has_endpoint:
            raise ValueError(f"baseline {self.name!r} needs a repository (open) or an endpoint (closed)")
        if has_weights != bool(self.architecture) or has_endpoint != bool(self.served_model):
            raise ValueError(
                f"baseline {self.name!r}: a repository needs an architecture, an endpoint a served_model"
            )
        return self

    @property
    def is_open(self) -> bool:
        """True when its weights can be had."""
        return bool(self.repository)

    def overrides(self) -> list[str]:
        """Its settings as ``--set`` takes them. JSON is YAML, so that every value reads back as it is."""
        settings = {**(_OPEN if self.is_open else _CLOSED), **self.settings}
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]

    def check_folder(self, path: str) -> None:
        """Raise ConfigError unless a model folder holds this architecture, and vLLM still runs it."""
        folder = resolve_model_path(path)
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        if self.architecture not in found:
            raise ConfigError(
                f"{folder} holds {', '.join(found) or 'no named architecture'}; {self.name} is "
                f"{self.architecture}. Give the folder of {self.repository}, or leave --baseline out."
            )
        if self.last_vllm:
            raise ConfigError(
                f"vLLM {self.last_vllm} was the last to run {self.architecture}, so {self.name} cannot be "
                "started here. Serve it in an environment with that release and give its --endpoint."
            )


def read_baselines(path: Path = BASELINES_FILE) -> tuple[Baseline, ...]:
    """Every known model, in the order of the file. Raises ConfigError for a file that is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        baselines = TypeAdapter(tuple[Baseline, ...]).validate_python(values)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path} does not hold baselines: {error}") from error
    names = [baseline.name for baseline in baselines]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{path}: {', '.join(repeated)} occur more than once; each needs a name of its own."
        )
    return baselines


def get_baseline(name: str) -> Baseline:
    """The known model of that name. Raises ConfigError with the nearest name when there is none."""
    known = {baseline.name: baseline for baseline in read_baselines()}
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Baseline {name!r} is unknown.{hint} There are: {', '.join(known)}.")
    return known[name]
