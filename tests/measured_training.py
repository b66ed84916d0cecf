"""Steps of SFT and R-GRPO taken and timed, with what they are made of: one process, one model, one engine."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch

from models import distributed
from models.checkpoints import Progress
from models.config import EngineConfig, RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.policy import Batch, Policy, load_to_train
from models.region import Picture
from models.rgrpo.actors import Actors
from models.rgrpo.samplers import Colocated
from models.rgrpo.train import Training
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.sft.step import sft_step
from models.vllm_engine import can_sleep, current_platform
from tests.fixed_length import FixedLengthEngine, Pass
from tests.flops import Work, training_flops, vision_flops
from tests.written import Writing, WrittenSampler, drawn_questions, rules

WARM_UP_STEPS = 1  # kernels are chosen, caches allocated


@dataclass(frozen=True, slots=True)
class Step:
    """One step of R-GRPO. ``seconds`` by part: rollout, log-prob, update, pictures, sync, rest.

    ``log-prob`` is the policy's forward pass, ``update`` the backward pass and AdamW, ``pictures`` the
    tower, whose features engine and trainer share. ``flops`` are the model's in those three.
    """

    seconds: dict[str, float]
    engine: Pass
    rollouts: int
    pictures: int
    looked_at: int
    flops: float

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return sum(self.seconds.values())

    @property
    def training_seconds(self) -> float:
        """Seconds of all that the trainer computes."""
        return sum(self.seconds[name] for name in ("log-prob", "update", "pictures"))


@dataclass(slots=True)
class Seen:
    """What a policy did in a step: seconds forward and in the tower, passes, pictures."""

    forward: float = 0.0
    tower: float = 0.0
    pictures: int = 0
    looked_at: list[Picture] = field(default_factory=list)
    work: Work = field(default_factory=Work)


class Watch:
    """Notes in ``seen`` what a policy does, until somebody takes it."""

    def __init__(self, policy: Policy) -> None:
        self.seen = Seen()
        self._began = 0.0
        policy.register_forward_pre_hook(lambda _, given: self._start(*given))
        policy.register_forward_hook(lambda *_: self._stop())
        features, look_at = policy.features, policy._look_at

        def counted(pictures: Sequence[Picture]) -> list[torch.Tensor]:
            self.seen.pictures += len(pictures)
            return features(pictures)

        def timed(pictures: list[Picture]) -> list[torch.Tensor]:
            began = now()
            found = look_at(pictures)
            self.seen.tower += now() - began
            self.seen.looked_at += pictures
            return found

        policy.features, policy._look_at = counted, timed

    def take(self) -> Seen:
        """What was seen since the last time."""
        taken, self.seen = self.seen, Seen()
        return taken

    def _start(self, batch: Batch) -> None:
        self.seen.work += Work.of(batch)
        self._began = now()

    def _stop(self) -> None:
        self.seen.forward += now() - self._began


@dataclass(frozen=True, slots=True)
class SFTStep:
    """One step of fine-tuning: tokens of its samples, the language model's passes, all model FLOPs."""

    seconds: float
    tokens: int
    work: Work
    flops: float


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """Seconds of a weight update and of a plain copy of the same bytes, medians."""

    num_bytes: int
    update: float
    copy: float


class Bench:
    """Trainer and engine of one model, on which steps are taken."""

    def __init__(
        self, engine: DeepSpeedEngine, vllm: FixedLengthEngine, config: RGRPORun, folder: Path
    ) -> None:
        self.policy: Policy = engine.module
        self._engine, self._config, self._folder = engine, config, folder
        self._side = math.isqrt(config.look.max_pixels)
        self._watch = Watch(self.policy)
        self._laps: list[tuple[Pass, Seen]] = []
        self._sampler = WrittenSampler(vllm, Writing(0, 1, self._side), self._lap)
        # As in a run, whose engine sleeps beside its trainer where it can; this one stays awake.
        self._keeps_frozen = not can_sleep(current_platform, sleeps=True)

    @classmethod
    @contextmanager
    def opened(
        cls, model: Path, training: RGRPOConfig, engine: EngineConfig, *, picture_side: int
    ) -> Iterator["Bench"]:
        """With a policy under DeepSpeed and vLLM in this process, as R-GRPO has them."""
        config = RGRPORun(
            model_path=str(model),
            questions_path="",
            look=rules(picture_side),
            rgrpo=training,
            engine=engine,
            freeze_vision=True,
            seed=0,
        )
        world = distributed.start(num_threads=training.num_threads)
        trainer = distributed.initialise(load_to_train(model, training).to(world.device), training)

        def look_at(pictures: Sequence[Picture]) -> list[torch.Tensor]:
            # Looked up when it is called: a Watch puts itself before it.
            features: list[torch.Tensor] = trainer.module.features(pictures)
            return features

        vllm = FixedLengthEngine(model, engine, look=config.look, look_at=look_at)
        try:
            with TemporaryDirectory() as folder:
                yield cls(trainer, vllm, config, Path(folder))
        finally:
            vllm.close()

    def writing(self, *, num_looks: int, num_tokens: int) -> Writing:
        """A trajectory under this bench's rules."""
        return Writing(num_looks, num_tokens, self._side)

    def prompt_tokens(self) -> int:
        """Tokens of a question with its picture, before the first sampled one."""
        (question,) = drawn_questions(1, picture_side=self._side)
        record = self.writing(num_looks=0, num_tokens=1).record(self.policy.encoder, question)
        return int(self.policy.encoder.encode_record(record, self._config.look).sampled.argmax())

    def rgrpo_steps(
        self, writing: Writing, *, num_questions: int, group_size: int, num_steps: int
    ) -> list[Step]:
        """Steps of the real stage, after those that warm up."""
        changes = {
            "num_steps": WARM_UP_STEPS + num_steps,
            "group_size": group_size,
            "questions_per_step": num_questions,
        }
        rgrpo = self._config.rgrpo.model_copy(update=changes)
        config = self._config.model_copy(update={"rgrpo": rgrpo})
        self._laps.clear()
        self._sampler.writing = writing
        self._watch.take()
        questions = drawn_questions(num_questions, picture_side=self._side)
        run = RunDir.create(Path(mkdtemp(dir=self._folder)) / "run", config)
        sampler = Colocated(self._sampler, keeps_frozen=self._keeps_frozen)
        actors = Actors(self._engine, sampler, questions, [], None)
        Training(run, config, actors).run_to_the_end(Progress())
        lines = [line for line in run.metrics() if "time/sync_seconds" in line]
        rollouts = num_questions * group_size
        taken = [self._step(line, *lap, rollouts) for line, lap in zip(lines, self._laps, strict=True)]
        return taken[WARM_UP_STEPS:]

    def sft_steps(self, writing: Writing, *, batch_size: int, num_steps: int) -> list[SFTStep]:
        """Steps after those that warm up. The tower looks at all pictures in each, as in a first epoch."""
        questions = drawn_questions(batch_size, picture_side=self._side)
        encoder, look = self.policy.encoder, self._config.look
        encoded = [encoder.encode_record(writing.record(encoder, one), look) for one in questions]
        taken = []
        for _ in range(WARM_UP_STEPS + num_steps):
            self.policy.look_afresh()
            self._watch.take()
            began = now()
            sft_step(
                self._engine,
                encoded,
                [question.id for question in questions],
                learning_rate=self._config.rgrpo.learning_rate,
                max_tokens=self._config.rgrpo.tokens_per_micro_batch,
            )
            seconds, seen = now() - began, self._watch.take()
            taken.append(SFTStep(seconds, sum(map(len, encoded)), seen.work, self._flops(seen)))
        return taken[WARM_UP_STEPS:]

    def weight_update(self, *, repeats: int) -> WeightUpdate:
        """The engine gets the policy's weights, and the same bytes are copied to another place."""
        with distributed.gathered(self._engine):
            weights = list(self.policy.weights(trained_only=self._keeps_frozen))
            places = [tensor.clone() for _, tensor in weights]
            updates, copies = [], []
            for _ in range(repeats):
                began = now()
                sent = self.policy.weights(trained_only=self._keeps_frozen)
                self._sampler.update_weights(sent, version=self._sampler.version)
                updates.append(now() - began)
                began = now()
                for place, (_, tensor) in zip(places, weights, strict=True):
                    place.copy_(tensor)
                copies.append(now() - began)
        num_bytes = sum(place.nbytes for place in places)
        return WeightUpdate(num_bytes, statistics.median(updates), statistics.median(copies))

    def _lap(self, measured: Pass) -> None:
        """A step of R-GRPO has come to its end."""
        self._laps.append((measured, self._watch.take()))

    def _step(self, line: dict[str, float], measured: Pass, seen: Seen, rollouts: int) -> Step:
        told = {
            name.removeprefix("time/").removesuffix("_seconds"): value
            for name, value in line.items()
            if name.startswith("time/")
        }
        rollout, sync, update = (told.pop(name) for name in ("rollout", "sync", "update"))
        seconds = {
            # The engine asks for the features of all pictures; the update then finds them in the store.
            "rollout": rollout - seen.tower,
            "log-prob": seen.forward,
            "update": update - seen.forward,
            "pictures": seen.tower,
            "sync": sync,
            "rest": sum(told.values()),
        }
        return Step(seconds, measured, rollouts, seen.pictures, len(seen.looked_at), self._flops(seen))

    def _flops(self, seen: Seen) -> float:
        config, encoder = self.policy.model.config, self.policy.encoder
        grids = [encoder.grid(picture) for picture in seen.looked_at]
        patches = [(rows * encoder.merge_size, columns * encoder.merge_size) for rows, columns in grids]
        return training_flops(config, seen.work) + vision_flops(config, patches)


def now() -> float:
    """Seconds, after all that a GPU still had to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()
