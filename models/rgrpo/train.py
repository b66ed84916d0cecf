"""Stage rgrpo: Region-Conditioned Reinforcement Policy Optimization (paper 3.3, A.3).

    python -m models.rgrpo.train RUN_DIR
    torchrun --nproc-per-node N -m models.rgrpo.train RUN_DIR

Every rank holds a share of the questions, an inference engine and the trained policy. A step samples M
rollouts of each question with the newest weights, scores them, and takes one optimiser step: strictly
on-policy, as Eq. 2 is, or one update behind with ``rgrpo.overlap`` (:mod:`models.rgrpo.overlap`). Groups of
equal rewards have advantage zero and are left out of the forward pass, which changes nothing but the time it
takes; with beta above 0 they stay, for the KL to the starting model moves them too. Guards watch the run and
pause it (:mod:`models.rgrpo.guards`).
"""

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import checkpoints, distributed
from models.checkpoints import Progress
from models.child import run_stage
from models.errors import GuardError
from models.records import Question
from models.rgrpo.actors import Actors, opened
from models.rgrpo.batch import Batch, score_and_compare
from models.rgrpo.dedicated import DedicatedSampler
from models.rgrpo.guards import Guards, steps_so_far
from models.rgrpo.outcomes import check_failures
from models.rgrpo.overlap import compare_like_with_like, read_ahead, staleness, write_ahead
from models.rgrpo.preflight import check_before, is_due
from models.rgrpo.probe import measure_crop_gain
from models.rgrpo.rollouts import rollouts_path, write_rollouts
from models.rgrpo.stopwatch import Stopwatch
from models.rgrpo.update import learning_rate, update_policy
from models.rollout import derive_seed
from models.run_config import RGRPORun
from models.rundir import Result, RunDir
from models.shuffling import endless_shuffle, start_of_batch
from models.trajectory import Trajectory

log = logging.getLogger(__name__)


def train(run: RunDir, config: RGRPORun) -> Result:
    """Train to the end, from the latest checkpoint when there is one; the model is then in ``model/``.

    Raises GateError when one real batch shows that training is not to be begun, and GuardError when a guard
    pauses it.
    """
    with opened(config) as actors:
        training = Training(run, config, actors)
        progress = checkpoints.resume(run, actors.engine, keep=config.rgrpo.keep_checkpoints)
        _look_before(run, config, actors, progress)
        training.run_to_the_end(progress)
    checkpoints.save_model(run, actors.engine)
    return Result(
        status="done",
        reason=_why_nothing_was_learnt(run),
        artifacts={"model": "model"},
        metrics=training.last_metrics,
    )


def _look_before(run: RunDir, config: RGRPORun, actors: Actors, progress: Progress) -> None:
    is_begun, is_over = progress.step > 0, progress.step == config.rgrpo.num_steps
    if not config.rgrpo.preflight.enabled or is_over or (is_begun and not is_due(run, config)):
        return
    if is_begun:  # else the engine has the policy's weights
        actors.show_weights(version=progress.weight_version)
    check_before(run, config, actors, is_begun=is_begun)


def _why_nothing_was_learnt(run: RunDir) -> str:
    """What a person must know of a run that ended well and has changed nothing; else empty."""
    updated = [line["rgrpo/updated"] for line in run.metrics() if "rgrpo/updated" in line]
    if any(updated) or not updated:
        return ""
    reason = (
        f"None of {len(updated)} steps had anything to train on: the rewards of every group were equal "
        "(rgrpo/zero_variance_share), or its rollouts were left out. The model is the one that it began "
        "with. Take questions that it answers now rightly, now wrongly."
    )
    log.warning(reason)
    return reason


class Training:
    """One R-GRPO run, on one of its ranks."""

    def __init__(self, run: RunDir, config: RGRPORun, actors: Actors) -> None:
        self._run, self._config, self._look, self._seed = run, config.rgrpo, config.look, config.seed
        self._actors, self._engine, self._policy = actors, actors.engine, actors.engine.module
        self._reference = actors.reference
        self._sampler, self._questions = actors.sampler, actors.questions
        self._held_out = _some(actors.held_out, config)
        self._guards = Guards(config.rgrpo.guards)
        if self._probes and not self._held_out and distributed.is_main():
            log.warning(
                "no held-out questions: nobody measures what crops are worth (rgrpo.guards.min_crop_gain)"
            )
        self._watch = Stopwatch()
        self._ahead: list[Trajectory] | None = None  # rollouts of the next step, with overlap
        self.last_metrics: dict[str, float] = {}

    def run_to_the_end(self, progress: Progress) -> None:
        """All steps that are left. Raises GuardError when a guard pauses the run."""
        began = time.monotonic() - progress.seconds
        self.last_metrics = self._run.last_metrics(progress.step)
        self._log(progress.step, {})
        if progress.step:
            self._resume_sampling(progress)
            earlier = distributed.from_main(lambda: steps_so_far(self._run.metrics(), progress.step))
            self._guards = Guards(self._config.guards, earlier)
        with _without_old_garbage():
            for step in range(progress.step, self._config.num_steps):
                self._take(step)
                if (step + 1) % self._config.checkpoint_every == 0:
                    self._save(step + 1, time.monotonic() - began)

    def _take(self, step: int) -> None:
        try:
            metrics = self._step(step)
            self._log(step + 1, metrics | self._watch.lap())
            self._guards.check(step + 1, metrics)
        except GuardError as error:
            raise self._paused(error, step) from error

    def _resume_sampling(self, progress: Progress) -> None:
        if progress.step == self._config.num_steps:
            return
        if self._config.overlap:
            folder = checkpoints.folder_of(self._run, progress.step)
            self._ahead = read_ahead(folder, self._next_questions(progress.step), self._look)
        else:
            self._show_the_sampler_new_weights(progress.weight_version)

    def _save(self, step: int, seconds: float) -> None:
        progress = Progress(
            step, seconds, num_samples=self._position(step), weight_version=self._sampler.version
        )
        checkpoints.save(
            self._run,
            self._engine,
            progress,
            keep=self._config.keep_checkpoints,
            beside=self._write_ahead if self._ahead is not None else None,
        )

    def _write_ahead(self, folder: Path) -> None:
        write_ahead(folder, self._ahead or [])

    def _paused(self, error: GuardError, step: int) -> GuardError:
        """The same with the last good checkpoint: one from before all that the guard has looked at, for a
        mean takes some steps to fall."""
        found = distributed.from_main(self._run.checkpoints)
        if not found:
            return GuardError(f"{error} No checkpoint had been written.")
        before = step + 1 - error.num_steps
        good = [path for path in found if checkpoints.step_of(path) <= before]
        name = (good or found)[-1].relative_to(self._run.path).as_posix()
        if good:
            said = f"The last good checkpoint is {name}."
        else:
            said = (
                f"The last checkpoint is {name}; none is left from before these {error.num_steps} steps "
                "(rgrpo.checkpoint_every, rgrpo.keep_checkpoints)."
            )
        return GuardError(f"{error} {said}", checkpoint=name)

    def _step(self, step: int) -> dict[str, float]:
        self._policy.look_afresh()  # pictures come again within a step, hardly from one to the next
        return self._overlapped_step(step) if self._config.overlap else self._sequential_step(step)

    def _sequential_step(self, step: int) -> dict[str, float]:
        probed = self._probe(step)
        questions = self._next_questions(step)
        trajectories = self._roll_out(questions, step)
        self._sampler.rest()
        batch = self._compare(trajectories, questions)
        self._record(batch, step)
        # Where nothing is trained, nothing would be compared.
        metrics = self._update(
            batch, step, before_step=dict if batch.has_samples else lambda: self._agree(trajectories, batch)
        )
        self._show_the_sampler_new_weights(step + 1)
        return {**probed, **batch.metrics, **metrics}

    def _overlapped_step(self, step: int) -> dict[str, float]:
        """While it trains, the engine samples for the next step, with the weights that it starts from."""
        questions = self._next_questions(step)
        trajectories = self._roll_out(questions, step) if self._ahead is None else self._ahead
        if step:
            self._show_the_sampler_new_weights(step)
        probed = self._probe(step)
        self._ahead = None
        is_last = step + 1 == self._config.num_steps
        if not is_last:
            self._begin_ahead(step + 1)
        batch = self._compare(trajectories, questions)
        self._record(batch, step)
        metrics = self._update(
            batch, step, before_step=dict if is_last else lambda: self._receive(batch, step)
        )
        return {**probed, **staleness(trajectories, step=step), **batch.metrics, **metrics}

    def _begin_ahead(self, step: int) -> None:
        assert isinstance(self._sampler, DedicatedSampler), "overlap goes with a dedicated engine"
        self._sampler.begin(self._next_questions(step), **self._how_to_roll_out(step))

    def _receive(self, batch: Batch, step: int) -> dict[str, float]:
        """Take the next step's rollouts, and look whether engine and trainer agree on them."""
        assert isinstance(self._sampler, DedicatedSampler), "overlap goes with a dedicated engine"
        with self._watch("rollout"):
            self._ahead = self._sampler.collect()
        with self._watch("compare"):
            try:
                return self._agree(self._ahead, batch)
            except GuardError:  # about rollouts that no step has recorded yet
                self._record(self._compare(self._ahead, self._next_questions(step + 1)), step + 1)
                raise

    def _agree(self, trajectories: Sequence[Trajectory], batch: Batch) -> dict[str, float]:
        """Whether engine and trainer do, on some rollouts of the policy as it is."""
        return compare_like_with_like(
            self._engine, trajectories, self._config, encoder=self._policy.encoder, spare=batch.spare
        )

    def _probe(self, step: int) -> dict[str, float]:
        """What crops are worth, now and then. Before the step, so that a resumed run does the same."""
        if not (self._probes and self._held_out) or step % self._config.guards.probe_every:
            return {}
        share = self._held_out[distributed.rank() :: self._config.num_ranks]
        with self._watch("probe"):
            return measure_crop_gain(self._sampler, share, look=self._look, run=self._run.path, step=step)

    @property
    def _probes(self) -> bool:
        return self._config.guards.enabled and self._config.guards.probe_every > 0

    def _next_questions(self, step: int) -> list[Question]:
        """This rank's share of the step's questions. None comes twice in a step: groups are by question."""
        count, start = self._config.questions_per_step, self._position(step)
        chosen = endless_shuffle(len(self._questions), start=start, count=count, seed=self._seed)
        share = count // distributed.num_ranks()
        return [self._questions[index] for index in chosen[distributed.rank() * share :][:share]]

    def _position(self, step: int) -> int:
        """How far into the order of all questions a step begins."""
        return start_of_batch(step, num_items=len(self._questions), size=self._config.questions_per_step)

    def _roll_out(self, questions: Sequence[Question], step: int) -> list[Trajectory]:
        with self._watch("rollout"):
            return self._sampler.roll_out(questions, **self._how_to_roll_out(step))

    def _how_to_roll_out(self, step: int) -> dict[str, Any]:
        return {
            "look": self._look,
            "num_samples": self._config.group_size,
            "temperature": self._config.temperature,
            "seed": derive_seed(self._seed, "rollouts", step),
        }

    def _compare(self, trajectories: Sequence[Trajectory], questions: Sequence[Question]) -> Batch:
        with self._watch("compare"):
            return score_and_compare(
                trajectories,
                questions,
                self._config,
                encoder=self._policy.encoder,
                look=self._look,
            )

    def _update(
        self, batch: Batch, step: int, *, before_step: Callable[[], dict[str, float]] = dict
    ) -> dict[str, float]:
        with self._watch("update"):
            return update_policy(
                self._engine,
                batch.samples,
                spare=batch.spare,
                totals=batch.totals,
                config=self._config,
                learning_rate=learning_rate(self._config, step),
                reference=self._reference,
                before_step=before_step,
            )

    def _show_the_sampler_new_weights(self, version: int) -> None:
        with self._watch("sync"):
            self._actors.show_weights(version=version)

    def _record(self, batch: Batch, step: int) -> None:
        """Before anybody refuses what was sampled: it is what has to be looked at then."""
        with self._watch("record"):
            write_rollouts(rollouts_path(self._run.path, step), batch.rollouts, step=step)
        check_failures(batch.outcomes, self._config)

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        self.last_metrics |= metrics
        if distributed.is_main():
            progress = {"progress/done": step, "progress/total": self._config.num_steps}
            self._run.log(step, metrics | progress)


def _some(held_out: Sequence[Question], config: RGRPORun) -> list[Question]:
    """The questions of every probe: the same ones, of all kinds, for a file may be sorted by kind."""
    count = min(config.rgrpo.guards.probe_questions, len(held_out))
    return [
        held_out[index] for index in endless_shuffle(len(held_out), start=0, count=count, seed=config.seed)
    ]


@contextmanager
def _without_old_garbage() -> Iterator[None]:
    """Within this context the collector passes over all that is there before: a million objects of libraries
    that stay, through which it would walk in every step."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


if __name__ == "__main__":
    sys.exit(run_stage(train, RGRPORun, sys.argv[1:]))
