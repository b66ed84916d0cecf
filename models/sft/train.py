"""Stage sft: supervised fine-tuning on rationale records (paper A.2).

    python -m models.sft.train RUN_DIR
    torchrun --nproc-per-node N -m models.sft.train RUN_DIR

Vision tower and projector are frozen; the language model learns to write what the records hold. The paper
names learning rate and epochs, which are a preset here; the schedule (linear warm-up, cosine) is ours.

Checks on held-out data (loss, and greedy look-again accuracy) come every ``check_every`` steps. With
``early_stop_patience`` the run ends when they stop getting better, and the best check's model is its result.

With ``max_seconds`` the run lasts that long instead of ``num_epochs``, and the schedule follows the clock: so
the equal-time control "more SFT" goes on from the SFT model.
"""

import logging
import math
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models import checkpoints, distributed
from models.checkpoints import Progress
from models.child import run_stage
from models.config import resolve_model_path
from models.distributed import DeepSpeedEngine
from models.errors import TrainingError
from models.feature_store import FeatureStore
from models.policy import Policy, load_to_train
from models.records import Question
from models.run_config import SFTRun
from models.rundir import Result, RunDir, link_or_copy, remove
from models.schedule import warmup_then_cosine
from models.sft.early_stop import EarlyStop
from models.sft.held_out import load_questions, look_again_metrics
from models.sft.samples import Samples, load_samples
from models.sft.step import sft_step, validation_loss

log = logging.getLogger(__name__)

_GIB = 1 << 30
LOOK_AHEAD = 8  # steps whose pictures are looked at together, where that is faster
_BEST = "best"  # the folder of the best check's model while the run goes on


def train(run: RunDir, config: SFTRun) -> Result:
    """Train to the end, from the latest checkpoint when there is one; the model is then in ``model/``."""
    _require_what_is_watched(config)
    world = distributed.start(num_threads=config.sft.num_threads)
    policy = load_to_train(
        resolve_model_path(config.model_path), config.sft, freeze_vision=config.freeze_vision
    )
    load = partial(load_samples, encoder=policy.encoder, look=config.look, config=config.sft, world=world)
    samples = load(Path(config.records_path))
    held_out = HeldOut(
        load(Path(config.validation_path)) if config.validation_path else None,
        load_questions(
            config.questions_path, config.validation_path, config=config.sft, seed=config.seed, world=world
        ),
    )
    engine = distributed.initialise(policy.to(world.device), config.sft)
    policy.look_in_bunches()
    training = Training(run, config, engine, samples, held_out, _keep_features(policy, config))
    training.run_to_the_end(checkpoints.resume(run, engine, keep=config.sft.keep_checkpoints))
    return training.finish()


def _require_what_is_watched(config: SFTRun) -> None:
    """Raise TrainingError where a run is to stop early by a loss that is never measured."""
    watched = config.sft.stops_early and config.sft.early_stop_metric == "validation_loss"
    if watched and not config.validation_path:
        raise TrainingError(
            f"sft.early_stop_patience is {config.sft.early_stop_patience} and watches validation_loss, but "
            "the data hold no validation records. Set it to 0, watch 'accuracy', or build data with a "
            "validation split."
        )


def _keep_features(policy: Policy, config: SFTRun) -> FeatureStore | None:
    """The store of what a frozen tower sees, which writes into the run's folder of features."""
    if not config.freeze_vision:
        return None
    on_disk = config.features_path and config.sft.feature_disk_gib
    return policy.keep_features(
        Path(config.features_path) if on_disk else None,
        max_bytes=int(config.sft.feature_memory_gib * _GIB),
        max_file_bytes=int(config.sft.feature_disk_gib * _GIB),
    )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """This rank's share of what checks are made on; both may be missing."""

    samples: Samples | None
    questions: list[Question]


class Training:
    """One SFT run, on one of its ranks."""

    def __init__(
        self,
        run: RunDir,
        config: SFTRun,
        engine: DeepSpeedEngine,
        samples: Samples,
        held_out: HeldOut,
        features: FeatureStore | None,
    ) -> None:
        self._run, self._config, self._seed, self._look = run, config.sft, config.seed, config.look
        self._engine, self._samples, self._held_out = engine, samples, held_out
        self._features = features
        self._steps_per_epoch = math.ceil(samples.num_total / config.sft.batch_size)
        self._num_steps = config.sft.num_epochs * self._steps_per_epoch
        self._began = time.monotonic()
        self._checks = EarlyStop(config.sft.early_stop_metric)
        self._progress = Progress()
        self._seen_until = 0
        self._bunch: list[int] = []  # the samples of the steps whose pictures were looked at together
        self._looked_at = 0  # at the last check
        self._spare = samples.share()[0]  # for a rank with nothing to do: one whose pictures it has seen
        self.last_metrics: dict[str, float] = {}

    def run_to_the_end(self, progress: Progress) -> None:
        """All steps that are left."""
        self._progress = progress
        self._restore_best(progress)
        self._began = time.monotonic() - progress.seconds
        self._checks = distributed.from_main(
            lambda: self._checks.resumed(self._run.metrics(), step=progress.step)
        )
        log.info("%d samples, from step %d of %d", self._samples.num_total, progress.step, self._num_steps)
        self.last_metrics = self._run.last_metrics(progress.step)
        begun = {"sft/dropped": float(self._samples.num_dropped)}
        self._log(progress, {} if progress.step else begun | self._check(progress))
        while not self._is_over(self._progress):
            self._progress = self._step(self._progress)
        self._share_features()

    def finish(self) -> Result:
        """Leave the model in ``model/``: the best check's where runs stop early, else the last."""
        config, step = self._config, self._progress.step
        metrics = self.last_metrics
        if not (config.stops_early and self._checks.checks):
            checkpoints.save_model(self._run, self._engine)
            return Result(status="done", artifacts={"model": "model"}, metrics=metrics)
        best, model = self._run.path / _BEST, self._run.path / "model"
        if distributed.is_main():
            shutil.rmtree(model, ignore_errors=True)
            best.rename(model)
        return Result(
            status="done",
            reason=self._checks.reason(stopped_at=step, num_steps=self._num_steps),
            artifacts={"model": "model"},
            metrics=metrics | {"sft/best_step": self._checks.best.step},
        )

    def _step(self, progress: Progress) -> Progress:
        config, samples = self._config, self._samples
        if progress.num_samples % samples.num_total == 0:
            self._share_features()
        start, size = progress.num_samples, config.batch_size
        seen = start + samples.num_in_batch(start, size=size)
        chosen = samples.batch(start, size=size, seed=self._seed)
        self._spare = chosen[0] if chosen else self._spare
        self._look_ahead(progress)
        following = samples.batch(seen, size=size, seed=self._seed) if self._share(progress) < 1 else []
        samples.want({*self._bunch, *chosen, *following, self._spare})
        encoded, spare = [samples.encoded(index) for index in chosen], samples.encoded(self._spare)
        with samples.getting_ready():
            metrics = sft_step(
                self._engine,
                encoded,
                [samples.id(index) for index in chosen],
                learning_rate=self._learning_rate(progress),
                max_tokens=config.tokens_per_micro_batch,
                spare=spare,
            )
        progress = Progress(progress.step + 1, self._seconds(), num_samples=seen)
        every = config.check_every or self._steps_per_epoch
        if progress.step % every == 0 or self._is_over(progress):
            metrics |= self._check(progress)
        self._log(progress, metrics)
        if progress.step % config.checkpoint_every == 0:
            checkpoints.save(
                self._run,
                self._engine,
                progress,
                keep=config.keep_checkpoints,
                beside=self._link_best if config.stops_early else None,
            )
        return progress

    def _link_best(self, folder: Path) -> None:
        """Let a checkpoint hold the best model so far, too: it may be all that a run has to go on from."""
        if distributed.is_main():
            for path in (self._run.path / _BEST).glob("*"):
                link_or_copy(path, folder / f"{_BEST}-{path.name}")

    def _restore_best(self, progress: Progress) -> None:
        """The best model as it was at the checkpoint that the run goes on from."""
        folder, best = checkpoints.folder_of(self._run, progress.step), self._run.path / _BEST
        if not (distributed.is_main() and self._config.stops_early and progress.step):
            return
        remove(best)
        for path in folder.glob(f"{_BEST}-*"):
            best.mkdir(exist_ok=True)
            link_or_copy(path, best / path.name.removeprefix(f"{_BEST}-"))

    def _look_ahead(self, progress: Progress) -> None:
        """Have the features of some steps' pictures computed at once: on a CPU their tower is small."""
        policy, samples, size = self._engine.module, self._samples, self._config.batch_size
        if progress.step < self._seen_until or not policy.tower_is_frozen or policy.device.type != "cpu":
            return
        chosen: list[int] = []
        step, start = progress.step, progress.num_samples
        # In the next epoch other ranks may have seen the pictures that this one needs.
        while step < progress.step + LOOK_AHEAD and (step == progress.step or start % samples.num_total):
            chosen += samples.batch(start, size=size, seed=self._seed)
            start += samples.num_in_batch(start, size=size)
            step += 1
        self._seen_until, self._bunch = step, chosen
        samples.want(chosen)
        policy.features([picture for index in chosen for picture in samples.encoded(index).pictures])

    def _share_features(self) -> None:
        """Leave what this rank's tower has seen to the other ranks, which get its samples in the next epoch,
        and to the next stage."""
        if self._features is not None:
            self._features.flush()
            distributed.barrier()

    def _is_over(self, progress: Progress) -> bool:
        if self._config.max_seconds:
            return progress.seconds >= self._config.max_seconds
        stops = self._config.stops_early and self._checks.is_over(self._config.early_stop_patience)
        return stops or progress.step >= self._num_steps

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

    def _check(self, progress: Progress) -> dict[str, float]:
        """Metrics on held-out data; the best model so far is kept in a folder where runs stop early."""
        config, held_out, policy = self._config, self._held_out, self._engine.module
        metrics: dict[str, float] = {}
        if (samples := held_out.samples) is not None:
            metrics["sft/validation_loss"] = validation_loss(
                self._engine,
                [samples.encoded(index) for index in samples.share()],
                [samples.id(index) for index in samples.share()],
                max_tokens=config.tokens_per_micro_batch,
            )
        if config.accuracy_questions:
            began = time.monotonic()
            metrics |= look_again_metrics(
                policy,
                held_out.questions,
                spare=self._samples.encoded(self._spare),
                look=self._look,
                config=config,
            )
            metrics["time/accuracy_seconds"] = time.monotonic() - began
        if policy.tower_is_frozen:
            (looked_at,) = distributed.global_sums([policy.num_looked_at - self._looked_at])
            metrics["time/pictures_looked_at"] = looked_at
            self._looked_at = policy.num_looked_at
        if config.stops_early:
            self._checks = self._checks.seen(progress.step, metrics)
            if self._checks.is_at_its_best and self._checks.best.step == progress.step:
                checkpoints.save_model(self._run, self._engine, name=_BEST)
        return metrics

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
