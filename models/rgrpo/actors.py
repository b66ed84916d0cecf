"""Who acts in R-GRPO, opened together: the policy that is trained, the engine that samples, the reference."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from models import distributed
from models.config import Look, resolve_model_path
from models.distributed import DeepSpeedEngine, World
from models.encoding import Encoder
from models.errors import ConfigError, RecordError, RegionError
from models.policy import Policy, load_reference, load_to_train
from models.protocol import SPECIAL_TOKEN
from models.records import Question, read_questions
from models.region import Picture
from models.rgrpo.dedicated import DedicatedSampler, engine_device
from models.rgrpo.engine_process import Opening
from models.rgrpo.samplers import Sampler, open_beside
from models.run_config import RGRPORun
from models.trajectory import Prompt

_DECODING_THREADS = 8


@dataclass(frozen=True, slots=True)
class Actors:
    """``engine.module`` is the :class:`models.policy.Policy`; ``held_out`` are the questions of the probe;
    ``reference`` see :func:`open_reference`."""

    engine: DeepSpeedEngine
    sampler: Sampler
    questions: list[Question]
    held_out: list[Question]
    reference: Policy | None

    def show_weights(self, *, version: int) -> None:
        """Give the sampler the policy's weights, which wakes one that rests; all ranks call it."""
        with distributed.gathered(self.engine):
            weights = self.engine.module.weights(trained_only=self.sampler.keeps_frozen)
            self.sampler.update_weights(weights, version=version)


@contextmanager
def opened(config: RGRPORun) -> Iterator[Actors]:
    """The actors of a run, on this rank, with the model that the run starts from.

    Raises ConfigError when there are fewer questions than a step takes, no place for the engine, or rollouts
    may become longer than a micro-batch; RecordError for a question that cannot be trained on.
    """
    config.rgrpo.require_fit_with(config.engine)
    questions = _questions(config)
    held_out = _usable(config.probe_path, config.look) if config.probe_path else []
    world = distributed.start(num_threads=config.rgrpo.num_threads)
    _require_pixels(config.questions_path, questions)
    _require_pixels(config.probe_path, held_out)
    model_path = resolve_model_path(config.model_path)
    with ExitStack() as stack:
        apart = _open_apart(config, model_path, world)  # it starts while the policy is loaded
        if apart is not None:
            stack.callback(apart.close)
        policy = load_to_train(model_path, config.rgrpo, freeze_vision=config.freeze_vision)
        _require_room(config.questions_path, questions, policy.encoder, config)
        _require_room(config.probe_path, held_out, policy.encoder, config)
        engine = distributed.initialise(policy.to(world.device), config.rgrpo)
        reference = open_reference(config, policy)
        sampler: Sampler
        if apart is not None:
            sampler = apart
        else:
            sampler = open_beside(policy, model_path, config.engine, look=config.look, seed=config.seed)
            stack.callback(sampler.close)  # while the process group that it joined still exists
        yield Actors(engine, sampler, questions, held_out, reference)


def _questions(config: RGRPORun) -> list[Question]:
    path = config.questions_path
    questions = _usable(path, config.look)
    if len(questions) < config.rgrpo.questions_per_step:
        raise ConfigError(
            f"{path} holds {len(questions)} questions, a step of R-GRPO takes "
            f"{config.rgrpo.questions_per_step} different ones. Lower rgrpo.questions_per_step, or give "
            "it more questions."
        )
    return questions


def _usable(path: str, look: Look) -> list[Question]:
    """All questions of a file, each of which some step will take: one that breaks it would end the run late,
    and again whenever the run goes on. Of a picture only the header is read here.
    """
    questions = read_questions(Path(path))
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            fault = "is there twice; rollouts are compared by question, so ids must be unique"
        elif not any(answer.strip() for answer in question.answers):
            fault = "has no answer to compare with"
        elif found := SPECIAL_TOKEN.search(question.text):
            fault = f"holds the special token {found[0]!r}, which the model would read as a mark of the chat"
        elif not (fault := _picture_fault(question, look)):
            seen.add(question.id)
            continue
        raise RecordError(f"{path}: question {question.id!r} {fault}. Take it out, or build the set again.")
    return questions


def _require_pixels(path: str, questions: Sequence[Question]) -> None:
    """Raise RecordError, on every rank, for a picture whose header is sound and whose pixels are not. Each
    rank decodes its share, on some threads: Pillow does it outside of Python's lock."""
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        share = questions[distributed.rank() :: distributed.num_ranks()]
        mine = [fault for fault in pool.map(_pixel_fault, share) if fault]
    faults = [fault for found in distributed.from_all_ranks(mine) for fault in found]
    if faults:
        raise RecordError(
            f"{path}: {len(faults)} of {len(questions)} pictures cannot be used. {faults[0]} Take such "
            "questions out, or build the set again."
        )


def _pixel_fault(question: Question) -> str:
    try:
        question.image()
    except RecordError as error:
        return str(error)
    return ""


def _require_room(path: str, questions: Sequence[Question], encoder: Encoder, config: RGRPORun) -> None:
    """Raise RecordError for a question that fills the engine's context, so that nothing could be sampled."""
    unit = encoder.patch_size * encoder.merge_size
    one_token = Picture.of(Image.new("RGB", (unit, unit)))
    for question in questions:
        prompt = Prompt(question.text, (one_token,), config.look.system)
        num_visual = question.view(config.look.budget).seen.area // unit**2
        num_tokens = len(encoder.collapse(prompt, []).ids) - 1 + num_visual
        if num_tokens >= config.engine.max_model_len:
            raise RecordError(
                f"{path}: question {question.id!r} takes {num_tokens} tokens with its picture, and "
                f"engine.max_model_len is {config.engine.max_model_len}: nothing could be sampled. Raise it, "
                "lower look.max_pixels, or take the question out."
            )


def _picture_fault(question: Question, look: Look) -> str:
    """Why its picture cannot be asked about; empty when it can."""
    try:
        question.view(look.budget)
    except (RecordError, RegionError) as error:
        return f"has a picture that cannot be used ({error})"
    return ""


def _open_apart(config: RGRPORun, model_path: Path, world: World) -> DedicatedSampler | None:
    """The engine of placement ``dedicated``, None for ``colocate``."""
    if config.engine.kind not in ("vllm", "transformers"):
        raise ConfigError(
            f"engine.kind {config.engine.kind!r} cannot sample for R-GRPO: its weights would not follow the "
            "policy. Use 'vllm' or 'transformers'."
        )
    training = config.rgrpo
    if training.placement == "colocate":
        return None
    device = engine_device(
        training.engine_devices,
        trainer=world.device,
        num_trainers=world.num_local,
        num_devices=torch.cuda.device_count(),
    )
    if device is not None and config.engine.kind != "vllm":
        raise ConfigError(
            f"engine.kind {config.engine.kind!r} has no process of its own on CUDA: its weights come through "
            "memory. Use 'vllm', or rgrpo.placement=colocate."
        )
    opening = Opening(
        model_path, config.engine, config.look, config.seed, world.rank, shares_memory=device is None
    )
    return DedicatedSampler(
        opening, trainer=world.device, device=device, timeout_seconds=training.engine_timeout_seconds
    )


def open_reference(config: RGRPORun, policy: Policy) -> Policy | None:
    """The model that the run starts from, beside its policy; None where ``objective.beta`` is 0."""
    if not config.rgrpo.objective.beta:
        return None
    return load_reference(resolve_model_path(config.model_path), policy, dtype=config.rgrpo.precision)
