"""Stage sft: supervised fine-tuning on rationale records (paper A.2).

    python -m models.sft.train RUN_DIR
    torchrun --nproc-per-node N -m models.sft.train RUN_DIR

Vision tower and projector are frozen; the language model learns to write what the records hold. The paper
names learning rate and epochs, which are a preset here; the schedule (linear warm-up, cosine) is ours.

With ``max_seconds`` the run lasts that long instead of ``num_epochs``, and the schedule follows the clock: so
the equal-time control "more SFT" goes on from the SFT model.
"""

import logging
import math
import sys
import time
from functools import partial
from pathlib import Path

from models import checkpoints, distributed
from models.checkpoints import Progress
from models.child import run_stage
from models.config import resolve_model_path
from models.distributed import DeepSpeedEngine
from models.policy import load_policy
from models.run_config import SFTRun
from models.rundir import Result, RunDir
from models.schedule import warmup_then_cosine
from models.sft.samples import Samples, load_samples
from models.sft.step import sft_step, validation_loss

log = logging.getLogger(__name__)


def train(run: RunDir, config: SFTRun) -> Result:
    """Train to the end, from the latest checkpoint when there is one; the model is then in ``model/``."""
    world = distributed.start(num_threads=config.sft.num_threads)
    policy = load_policy(resolve_model_path(config.model_path), freeze_vision=config.freeze_vision)
    load = partial(load_samples, encoder=policy.encoder, look=config.look, config=config.sft, world=world)
    samples = load(Path(config.records_path))
    held_out = load(Path(config.validation_path)) if config.validation_path else None
    engine = distributed.initialise(policy.to(world.device), config.sft)
    training = Training(run, config, engine, samples, held_out)
    training.run_to_the_end(checkpoints.resume(run, engine))
    checkpoints.save_model(run, engine)
    return Result(status="done", artifacts={"model": "model"}, metrics=training.last_metrics)


class Training:
    """One SFT run, on one of its ranks."""

    def __init__(
        self,
        run: RunDir,
        config: SFTRun,
        engine: DeepSpeedEngine,
        samples: Samples,
        held_out: Samples | None,
    ) -> None:
        self._run, self._config, self._seed = run, config.sft, config.seed
        self._engine, self._samples, self._held_out = engine, samples, held_out
        self._steps_per_epoch = math.ceil(samples.num_total / config.sft.batch_size)
        self._num_steps = config.sft.num_epochs * self._steps_per_epoch
        self._began = time.monotonic()
        self.last_metrics: dict[str, float] = {}

    def run_to_the_end(self, progress: Progress) -> None:
        """All steps that are left."""
        self._began = time.monotonic() - progress.seconds
        log.info("%d samples, from step %d of %d", self._samples.num_total, progress.step, self._num_steps)
        self.last_metrics = self._run.last_metrics(progress.step)
        begun = {"sft/dropped": float(self._samples.num_dropped)}
        self._log(progress, {} if progress.step else begun | self._validate())
        while not self._is_over(progress):
            progress = self._step(progress)

    def _step(self, progress: Progress) -> Progress:
        config, samples = self._config, self._samples
        chosen = samples.batch(progress.num_samples, size=config.batch_size, seed=self._seed)
        metrics = sft_step(
            self._engine,
            [samples.encoded(index) for index in chosen],
            [samples.id(index) for index in chosen],
            learning_rate=self._learning_rate(progress),
            max_tokens=config.tokens_per_micro_batch,
        )
        seen = progress.num_samples + config.batch_size
        progress = Progress(progress.step + 1, self._seconds(), num_samples=seen)
        if progress.step % self._steps_per_epoch == 0 or self._is_over(progress):
            metrics |= self._validate()
        self._log(progress, metrics)
        if progress.step % config.checkpoint_every == 0:
            checkpoints.save(self._run, self._engine, progress, keep=config.keep_checkpoints)
        return progress

    def _is_over(self, progress: Progress) -> bool:
        if self._config.max_seconds:
            return progress.seconds >= self._config.max_seconds
        return progress.step >= self._num_steps

    def _share(self, progress: Progress) -> float:
        """How much of the run is over when the step that follows ``progress`` is taken."""
        if self._config.max_seconds:
            return progress.seconds / self._config.max_seconds
        return (progress.step + 1) / self._num_steps

    def _learning_rate(self, progress: Progress) -> float:
        config = self._config
        return warmup_then_cosine(
            self._share(progress),
            peak=config.learning_rate,
            warmup=config.warmup_ratio,
            min_ratio=config.min_lr_ratio,
        )

    def _seconds(self) -> float:
        """Seconds of training so far, the same on every rank."""
        return distributed.from_main(lambda: time.monotonic() - self._began)

    def _validate(self) -> dict[str, float]:
        if self._held_out is None:
            return {}
        budget = self._config.tokens_per_micro_batch
        encoded = [self._held_out.encoded(index) for index in self._held_out.share()]
        loss = validation_loss(self._engine, encoded, max_tokens=budget)
        return {"sft/validation_loss": loss}

    def _log(self, progress: Progress, metrics: dict[str, float]) -> None:
        self.last_metrics |= metrics
        if not distributed.is_main():
            return
        by_time = bool(self._config.max_seconds)
        done, total = (
            (progress.seconds, self._config.max_seconds) if by_time else (progress.step, self._num_steps)
        )
        self._run.log(progress.step, {**metrics, "progress/done": done, "progress/total": total})


if __name__ == "__main__":
    sys.exit(run_stage(train, SFTRun, sys.argv[1:]))
