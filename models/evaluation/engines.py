"""The engines that evaluate checkpoints: in-process vLLM, and plain transformers as the reference."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from models.config import EngineConfig, Look
from models.engine import Engine
from models.errors import ConfigError
from models.evaluation.switch import Engines
from models.policy import load_policy
from models.run_config import EvaluationRun
from models.transformers_engine import TransformersEngine


class VLLMEngines:
    """In-process vLLM; a reload exchanges the weights of the running engine."""

    def __init__(self, config: EngineConfig, *, look: Look, seed: int) -> None:
        self._config, self._look, self._seed = config, look, seed

    def open(self, model_path: Path) -> Engine:
        """A new engine."""
        from models.vllm_engine import VLLMEngine  # its import takes seconds; the reference engine needs none

        return VLLMEngine(model_path, self._config, look=self._look, seed=self._seed)

    def reload(self, engine: Engine, model_path: Path) -> Engine:
        """The same engine with other weights."""
        from models.vllm_engine import VLLMEngine

        assert isinstance(engine, VLLMEngine), "another class opened this engine"
        engine.update_weights(saved_weights(model_path), version=engine.version + 1)
        return engine


class TransformersEngines:
    """The reference engine, which starts so quickly that a reload is a new one."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def open(self, model_path: Path) -> Engine:
        """A new engine."""
        return TransformersEngine(load_policy(model_path, dtype=self._config.dtype), self._config)

    def reload(self, engine: Engine, model_path: Path) -> Engine:
        """A new engine; the old one is closed."""
        engine.close()
        return self.open(model_path)


def engines_for(config: EvaluationRun) -> Engines:
    """Where this run's engines come from. Raises ConfigError for an engine that serves a model of its own."""
    num_threads = config.evaluation.num_threads or config.engine.num_threads
    engine = config.engine.model_copy(update={"num_threads": num_threads})
    return checkpoint_engines(engine, look=config.look, seed=config.seed)


def checkpoint_engines(config: EngineConfig, *, look: Look, seed: int) -> Engines:
    """Engines of one configuration. Raises ConfigError for one that serves a model of its own."""
    if config.kind == "vllm":
        return VLLMEngines(config, look=look, seed=seed)
    if config.kind == "transformers":
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        return TransformersEngines(config)
    raise ConfigError(
        f"engine.kind {config.kind!r} cannot evaluate checkpoints: an endpoint serves a model of its "
        "own. Use 'vllm' or 'transformers'."
    )


def saved_weights(model_path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model folder under the names of its files, one at a time.

    Raises ConfigError when the folder holds no safetensors file.
    """
    files = sorted(model_path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{model_path} holds no .safetensors file. Save the model in Hugging Face layout.")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names: list[str] = opened.keys()
            for name in names:
                yield name, opened.get_tensor(name)
