"""Who acts in R-GRPO, opened together: the policy that is trained, the engine that samples, the reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models import distributed
from models.config import resolve_model_path
from models.distributed import DeepSpeedEngine
from models.errors import ConfigError
from models.policy import Policy, load_policy, load_reference
from models.records import Question, read_questions
from models.rgrpo.samplers import open_sampler
from models.run_config import RGRPORun
from models.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from models.vllm_engine import VLLMEngine


@dataclass(frozen=True, slots=True)
class Actors:
    """``engine.module`` is the :class:`models.policy.Policy`; ``held_out`` are the questions of the probe;
    ``reference`` see :func:`open_reference`."""

    engine: DeepSpeedEngine
    sampler: "VLLMEngine | TransformersEngine"
    questions: list[Question]
    held_out: list[Question]
    reference: Policy | None


@contextmanager
def opened(config: RGRPORun) -> Iterator[Actors]:
    """The actors of a run, on this rank, with the model that the run starts from.

    Raises ConfigError when there are fewer questions than a step takes.
    """
    world = distributed.start(num_threads=config.rgrpo.num_threads)
    model_path = resolve_model_path(config.model_path)
    policy = load_policy(model_path, freeze_vision=config.freeze_vision).to(world.device)
    engine = distributed.initialise(policy, config.rgrpo)
    reference = open_reference(config, policy)
    questions = read_questions(Path(config.questions_path))
    if len(questions) < config.rgrpo.questions_per_step:
        raise ConfigError(
            f"{config.questions_path} holds {len(questions)} questions, a step of R-GRPO takes "
            f"{config.rgrpo.questions_per_step} different ones. Lower rgrpo.questions_per_step, or give it "
            "more questions."
        )
    held_out = read_questions(Path(config.probe_path)) if config.probe_path else []
    sampler = open_sampler(policy, model_path, config.engine, look=config.look, seed=config.seed)
    try:
        yield Actors(engine, sampler, questions, held_out, reference)
    finally:
        sampler.close()  # while the process group that it joined still exists


def open_reference(config: RGRPORun, policy: Policy) -> Policy | None:
    """The model that the run starts from, beside its policy; None where ``objective.beta`` is 0."""
    if not config.rgrpo.objective.beta:
        return None
    return load_reference(resolve_model_path(config.model_path), policy, dtype=config.rgrpo.precision)
