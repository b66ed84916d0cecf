"""R-GRPO on text that is dictated: the real stage for models that cannot read, where only speed matters."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from models import distributed
from models.checkpoints import Progress
from models.config import resolve_model_path
from models.encoding import Encoder
from models.policy import load_to_train
from models.protocol import render_box
from models.records import read_questions
from models.region import Box
from models.rgrpo.actors import Actors
from models.rgrpo.samplers import Colocated
from models.rgrpo.train import Training
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import Finish, GenerationRequest, SampledSpan
from tests.benchmarks.rollout_throughput import filled
from tests.fixed_length import Dictated, FixedLengthEngine

MAX_CROPS = 2
MIN_TOKENS, MAX_TOKENS = 16, 64  # of a turn, about


def dictated_training(run: RunDir, config: RGRPORun) -> None:
    """All steps of a run on this one rank, without what is done once before or after them."""
    distributed.start(num_threads=config.rgrpo.num_threads)
    path = resolve_model_path(config.model_path)
    engine = distributed.initialise(load_to_train(path, config.rgrpo), config.rgrpo)
    look_at = engine.module.features
    vllm = FixedLengthEngine(path, config.engine, look=config.look, seed=config.seed, look_at=look_at)
    sampler = DictatedSampler(vllm, looks(vllm.encoder, lambda: vllm.version))
    # The engine's log-probs are of other tokens: there is nothing to agree with, and nothing to guard.
    guards = config.rgrpo.guards.model_copy(update={"enabled": False})
    training = config.rgrpo.model_copy(update={"max_mismatch_kl": np.inf, "guards": guards})
    beside = Colocated(sampler, keeps_frozen=not vllm.can_sleep)
    actors = Actors(engine, beside, read_questions(Path(config.questions_path)), [], None)
    try:
        Training(run, config.model_copy(update={"rgrpo": training}), actors).run_to_the_end(Progress())
    finally:
        sampler.close()


class DictatedSampler(Dictated):
    """vLLM that samples as many tokens as a dictated turn has, and then says that turn."""

    def __init__(
        self,
        engine: FixedLengthEngine,
        dictate: Callable[[GenerationRequest], tuple[SampledSpan, Finish]],
    ) -> None:
        super().__init__(engine, dictate)
        self.salt = ""
        self._vllm = engine

    @property
    def version(self) -> int:
        """Of the weights that sample."""
        return self._vllm.version

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """As the engine behind."""
        self._vllm.update_weights(weights, version=version)

    def sleep(self) -> None:
        """As the engine behind."""
        self._vllm.sleep()

    def close(self) -> None:
        """Close the engine behind."""
        self._vllm.close()


def looks(
    encoder: Encoder, version: Callable[[], int]
) -> Callable[[GenerationRequest], tuple[SampledSpan, Finish]]:
    """Trajectories that look at 0 to 2 quadrants; which ones, how much they write and whether they answer
    K7 depends on their names alone."""

    def dictate(request: GenerationRequest) -> tuple[SampledSpan, Finish]:
        rng = np.random.default_rng(zlib.crc32(request.request_id.encode()))
        num_crops, answer = int(rng.integers(MAX_CROPS + 1)), str(rng.choice(["K7", "A1"]))
        quadrants = rng.permutation(4)
        num_tokens = rng.integers(MIN_TOKENS, MAX_TOKENS + 1, size=MAX_CROPS + 1)
        turn = sum(isinstance(span, SampledSpan) for span in request.spans)
        ending = f"It says {answer}.</think><answer>{answer}</answer>"
        if turn < num_crops:
            width, height = (side // 2 for side in request.prompt.pictures[0].image.size)
            left, top = quadrants[turn] % 2 * width, quadrants[turn] // 2 * height
            ending = render_box(Box(left, top, left + width, top + height, space="seen"))
        span = filled(encoder, int(num_tokens[turn]), beginning="" if turn else "<think>", ending=ending)
        return SampledSpan(span.text, span.token_ids, span.logprobs, version()), "stop"

    return dictate
