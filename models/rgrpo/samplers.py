"""The engine that samples a rank's rollouts, beside the policy that is being trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from models.config import EngineConfig, Look
from models.errors import ConfigError
from models.policy import Policy
from models.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from models.vllm_engine import VLLMEngine


def open_sampler(
    policy: Policy, model_path: Path, config: EngineConfig, *, look: Look, seed: int
) -> "VLLMEngine | TransformersEngine":
    """An engine in this process. Raises ConfigError for one whose weights cannot follow the policy's."""
    if config.kind == "transformers":
        return TransformersEngine(policy, config)
    if config.kind in ("http", "vllm-server"):
        raise ConfigError(
            f"engine.kind {config.kind!r} cannot sample for R-GRPO: its weights would not follow the policy. "
            "Use 'vllm' or 'transformers'."
        )
    from models.vllm_engine import VLLMEngine  # its import takes seconds; the reference engine needs none

    return VLLMEngine(model_path, config, look=look, seed=seed)


def refresh(sampler: "VLLMEngine | TransformersEngine", policy: Policy, *, version: int) -> None:
    """Let the engine sample from the policy's present weights, and mark what it samples with ``version``."""
    if isinstance(sampler, TransformersEngine):
        sampler.version = version  # it samples from the policy itself
    else:
        sampler.update_weights(policy.weights(), version=version)
