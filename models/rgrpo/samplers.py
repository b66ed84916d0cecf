"""What samples a rank's rollouts: an engine beside the policy (``colocate``) or in a process of its own
(``dedicated``, :mod:`models.rgrpo.dedicated`)."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from models.config import EngineConfig, Look
from models.policy import Policy
from models.records import Question
from models.rollout import rollout
from models.trajectory import Trajectory
from models.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from models.vllm_engine import VLLMEngine


class Sampler(Protocol):
    """``version`` is that of the weights which it samples with, and which spans are marked with. Without
    ``has_weights`` it samples from the policy itself and keeps nothing of older weights; with
    ``shares_tower`` pictures come with the features of the policy's tower, which is frozen then. With
    ``keeps_frozen`` an update may leave out what is never trained, which it has from the start."""

    has_weights: bool
    shares_tower: bool
    keeps_frozen: bool

    @property
    def version(self) -> int:
        """Which weights they are: as many updates as the policy had."""

    def roll_out(
        self,
        questions: Sequence[Question],
        *,
        look: Look,
        num_samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        salt: str = "",
    ) -> list[Trajectory]:
        """As :func:`models.rollout.rollout`. Requests share caches with those of the same ``salt``."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replace weights, named as in ``Policy.weights``, and forget what older ones made."""

    def looking_itself(self) -> AbstractContextManager[None]:
        """Within this context its own tower looks at pictures."""

    def rest(self) -> None:
        """Give back what memory it can until weights come; nothing is rolled out before."""

    def close(self) -> None:
        """Free what it holds."""


class Colocated:
    """An engine in this process, on the device of the trainer."""

    def __init__(
        self,
        engine: "VLLMEngine | TransformersEngine",
        *,
        shares_tower: bool = False,
        keeps_frozen: bool = False,
    ) -> None:
        self.engine = engine
        self.has_weights = not isinstance(engine, TransformersEngine)
        self.shares_tower = self.has_weights and shares_tower
        self.keeps_frozen = keeps_frozen

    @property
    def version(self) -> int:
        """The version of the weights."""
        return self.engine.version

    def roll_out(self, questions: Sequence[Question], *, salt: str = "", **how: Any) -> list[Trajectory]:
        """See :class:`Sampler`."""
        if not isinstance(self.engine, TransformersEngine):
            self.engine.salt = salt
        return rollout(self.engine, questions, **how)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """See :class:`Sampler`; transformers has the policy's already."""
        if isinstance(self.engine, TransformersEngine):
            self.engine.version = version
        else:
            self.engine.update_weights(weights, version=version)

    def looking_itself(self) -> AbstractContextManager[None]:
        """See :class:`Sampler`."""
        return nullcontext() if isinstance(self.engine, TransformersEngine) else self.engine.looking_itself()

    def rest(self) -> None:
        """See :class:`Sampler`."""
        if not isinstance(self.engine, TransformersEngine):
            self.engine.sleep()

    def close(self) -> None:
        """See :class:`Sampler`."""
        self.engine.close()


def open_beside(
    policy: Policy, model_path: Path, config: EngineConfig, *, look: Look, seed: int
) -> Colocated:
    """An engine in this process."""
    if config.kind == "transformers":
        return Colocated(TransformersEngine(policy, config))
    from models.vllm_engine import VLLMEngine  # its import takes seconds; the reference engine needs none

    # What DeepSpeed's start has freed, vLLM would count as taken. Nothing without a GPU.
    torch.cuda.empty_cache()
    shares = policy.tower_is_frozen  # then a picture is looked at once, for engine and trainer
    look_at = policy.features if shares else None
    engine = VLLMEngine(model_path, config, look=look, seed=seed, look_at=look_at, sleeps=True)
    # What has slept has no weights left.
    return Colocated(engine, shares_tower=shares, keeps_frozen=not engine.can_sleep)
