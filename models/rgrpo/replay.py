"""Replay a step of R-GRPO: every rollout scored again by the policy, to the first token that diverges.

A reward that falls becomes a difference that can be read. Kept are the sampled ids, the engine's log-probs
with the version of its weights, boxes, digests of pictures and crops, and rewards
(:mod:`models.rgrpo.rollouts`); pictures and crops are cut again from the questions and must have the same
digests. The policy that sampled (with ``rgrpo.overlap`` it is one update older than the step's) comes from
the last checkpoint before it, or from the model that the run began with, and from the updates that the
rollouts kept since then give once more: nothing has to be sampled.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models import checkpoints, distributed
from models.config import Look, resolve_model_path
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded, Encoder
from models.errors import EncodingError, RecordError, RunDirError
from models.policy import Policy, load_to_train
from models.records import Question, read_questions
from models.rgrpo.actors import open_reference
from models.rgrpo.batch import Batch, Rollout, score_and_compare
from models.rgrpo.box_check import boxes_are_right
from models.rgrpo.rollouts import KeptRollout, read_rollouts, rebuilt, rollouts_path, steps_kept
from models.rgrpo.update import learning_rate, score_again, update_policy
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import CropSpan, SampledSpan, Trajectory
from models.transcripts import Transcript

# How far two log-probs of one token may be apart, nats, where engine and policy compute in this precision.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5}
# Rewards are sums of decimal constants; advantages are divided by a spread that may be small.
_REWARD_TOLERANCE, _ADVANTAGE_TOLERANCE = 1e-9, 1e-6
_CONTEXT_TOKENS = 12


class Part(BaseModel):
    """Base of what a replay finds: immutable, and JSON for programs."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Divergence(Part):
    """The first token of a rollout whose log-probs are too far apart, nats.

    ``number`` counts sampled tokens from 0, ``turn`` the stretches of generation; ``before`` is the text that
    led to it.
    """

    number: int
    turn: int
    token_id: int
    token: str
    before: str
    engine: float
    reference: float


class ReplayedRollout(Part):
    """One rollout. ``faults`` says in words what did not come out as it was kept."""

    question_id: str
    sample_index: int
    num_tokens: int
    largest_difference: float | None = None
    divergence: Divergence | None = None
    faults: tuple[str, ...] = ()


class Replay(Part):
    """What a step came to. ``started_from`` and ``updates_again`` say where the policy comes from;
    ``mismatch_kl`` is KL(engine || policy), k3, nats per token; more than ``max_mismatch_kl`` would have
    paused the run.
    """

    step: int
    started_from: str
    updates_again: int
    tolerance: float
    num_tokens: int
    mismatch_kl: float
    max_mismatch_kl: float
    largest_difference: float
    rollouts: tuple[ReplayedRollout, ...]

    @property
    def diverging(self) -> tuple[ReplayedRollout, ...]:
        """The rollouts with a token that diverges, or a fault."""
        return tuple(one for one in self.rollouts if one.divergence or one.faults)

    @property
    def agrees(self) -> bool:
        """No rollout diverges, nor do all of them a little."""
        return not self.diverging and self.mismatch_kl <= self.max_mismatch_kl


def replay(
    run: RunDir,
    step: int,
    *,
    tolerance: float | None = None,
    on_update: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Replay the rollouts that were sampled for update ``step`` (from 0) of a run directory.

    ``tolerance`` is in nats, by default that of the coarser precision of engine and policy. ``on_update``
    hears of every update that is made again. Raises RunDirError when the step was not kept, ConfigError or
    RecordError when the model or the questions are no longer there.
    """
    asked = _config_of(run)
    config = _without_limits(asked)
    kept = steps_kept(run.path)
    if step not in kept:
        raise RunDirError(f"{run.path} keeps no rollouts of step {step}; it has {_ranges(kept)}.")
    world = distributed.start(num_threads=config.rgrpo.num_threads)
    policy = load_to_train(
        resolve_model_path(config.model_path), config.rgrpo, freeze_vision=config.freeze_vision
    )
    engine = distributed.initialise(policy.to(world.device), config.rgrpo)
    questions = {question.id: question for question in read_questions(Path(config.questions_path))}
    version = config.rgrpo.sampled_by(step)
    found = checkpoints.resume(run, engine, at_most=version)
    started_from = f"checkpoints/step-{found.step}" if found.step else "the model that the run began with"
    missing = sorted(set(range(found.step, version)) - set(kept))
    if missing:
        raise RunDirError(
            f"The policy of step {step} cannot be made again: from {started_from} on the updates "
            f"{found.step} to {version - 1} have to be repeated, and {run.path} keeps no rollouts of "
            f"{_ranges(missing)}."
        )
    reference = open_reference(config, policy) if found.step < version else None
    for again in range(found.step, version):
        _update_again(engine, run, again, config, questions, reference)
        on_update(again + 1 - found.step, version - found.step)
    coarser = max(TOLERANCES[config.engine.dtype], TOLERANCES[config.rgrpo.precision])
    limit = coarser if tolerance is None else tolerance
    rollouts, gaps = _replayed(engine, run, step, config, questions, tolerance=limit)
    differences = np.concatenate([*gaps, np.zeros(0)])
    return Replay(
        step=step,
        started_from=started_from,
        updates_again=version - found.step,
        tolerance=limit,
        num_tokens=len(differences),
        mismatch_kl=float(np.mean(np.expm1(differences) - differences)) if len(differences) else 0.0,
        max_mismatch_kl=asked.rgrpo.max_mismatch_kl,
        largest_difference=float(np.abs(differences).max(initial=0.0)),
        rollouts=tuple(rollouts),
    )


def _ranges(steps: Sequence[int]) -> str:
    """Ascending numbers in words: "0 to 3, 7"; "none" where there are none."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"


def _config_of(run: RunDir) -> RGRPORun:
    try:
        return RGRPORun.model_validate_json(run.config_text())
    except ValidationError as error:
        raise RunDirError(f"{run.path} is no run of R-GRPO: its config.json is another stage's.") from error


def _without_limits(config: RGRPORun) -> RGRPORun:
    """What ended the run, or would end it now, is what one wants to look at."""
    limits = {"max_mismatch_kl": math.inf, "max_failed_share": 1.0}
    return config.model_copy(update={"rgrpo": config.rgrpo.model_copy(update=limits)})


def _update_again(
    engine: DeepSpeedEngine,
    run: RunDir,
    step: int,
    config: RGRPORun,
    questions: Mapping[str, Question],
    reference: Policy | None,
) -> None:
    """Take the optimiser step of the rollouts that were kept of ``step``, on this one rank."""
    trajectories = [
        rebuilt(one.transcript, _question(one.transcript, questions), config.look)
        for one in read_rollouts(rollouts_path(run.path, step))
    ]
    batch = _compared(engine.module.encoder, trajectories, config, questions)
    update_policy(
        engine,
        batch.samples,
        spare=batch.spare,
        totals=batch.totals,
        config=config.rgrpo,
        learning_rate=learning_rate(config.rgrpo, step),
        reference=reference,
    )


def _replayed(
    engine: DeepSpeedEngine,
    run: RunDir,
    step: int,
    config: RGRPORun,
    questions: Mapping[str, Question],
    *,
    tolerance: float,
) -> tuple[list[ReplayedRollout], list[np.ndarray]]:
    """Every rollout of a step, and per rollout that could be scored again the differences (N,), policy minus
    engine, nats.
    """
    encoder: Encoder = engine.module.encoder
    kept = read_rollouts(rollouts_path(run.path, step))
    version = config.rgrpo.sampled_by(step)
    names = [(one.transcript.question_id, one.transcript.sample_index) for one in kept]
    faults: list[list[str]] = [_stale(one, step, version) for one in kept]
    trajectories: dict[int, Trajectory] = {}
    encoded: dict[int, Encoded] = {}
    for number, one in enumerate(kept):
        if names[number] in names[:number]:
            faults[number].append("kept a second time, in the place of another rollout")
        try:
            trajectory = rebuilt(one.transcript, _question(one.transcript, questions), config.look)
            encoded[number] = encoder.encode(trajectory)
            trajectories[number] = trajectory
            faults[number] += _otherwise_asked(one, trajectory, questions, config.look)
            faults[number] += _other_ids(one, trajectory, encoded[number], encoder)
        except (RecordError, EncodingError) as error:
            faults[number].append(str(error))
    if len(trajectories) == len(kept):
        batch = _compared(encoder, list(trajectories.values()), config, questions)
        for number, (old, new) in enumerate(zip(kept, batch.rollouts, strict=True)):
            faults[number] += _other_rewards(old, new)
    scored = [number for number, one in trajectories.items() if one.num_sampled_tokens]
    logprobs = score_again(engine, [encoded[number] for number in scored], config.rgrpo)
    gaps = {
        number: again - encoded[number].engine_logprobs[encoded[number].sampled]
        for number, again in zip(scored, logprobs, strict=True)
    }
    rollouts = [
        ReplayedRollout(
            question_id=one.transcript.question_id,
            sample_index=one.transcript.sample_index,
            num_tokens=one.transcript.num_sampled_tokens,
            largest_difference=float(np.abs(gaps[number]).max()) if number in gaps else None,
            divergence=_first(trajectories[number], encoded[number], gaps[number], encoder, tolerance)
            if number in gaps
            else None,
            faults=tuple(faults[number]),
        )
        for number, one in enumerate(kept)
    ]
    return rollouts, list(gaps.values())


def _compared(
    encoder: Encoder, trajectories: Sequence[Trajectory], config: RGRPORun, questions: Mapping[str, Question]
) -> Batch:
    size = config.rgrpo.group_size
    names = [one.question_id for one in trajectories]
    if names != [name for name in names[::size] for _ in range(size)]:
        raise RecordError(
            f"The {len(names)} rollouts that were kept are not {size} of each question in a row: some are "
            "missing or stand elsewhere, so rewards cannot be compared. Restore the file."
        )
    asked = [questions[name] for name in names[::size]]
    return score_and_compare(trajectories, asked, config.rgrpo, encoder=encoder, look=config.look)


def _question(transcript: Transcript, questions: Mapping[str, Question]) -> Question:
    if transcript.question_id not in questions:
        raise RecordError(f"Question {transcript.question_id!r} is not among the run's questions any more.")
    return questions[transcript.question_id]


def _stale(kept: KeptRollout, step: int, version: int) -> list[str]:
    spans = (span for span in kept.transcript.spans if isinstance(span, SampledSpan))
    versions = sorted({span.policy_version for span in spans} - {version})
    return [f"sampled by policy version {versions} in step {step}"] if versions else []


def _otherwise_asked(
    kept: KeptRollout, trajectory: Trajectory, questions: Mapping[str, Question], look: Look
) -> Iterator[str]:
    question = questions[trajectory.question_id]
    if kept.kind != question.kind:
        yield f"kept as a question of kind {kept.kind!r}, which is {question.kind!r}"
    if not boxes_are_right(trajectory, question, look):
        yield "a crop is not of the numbers that its command has in the text"
    accepted = [event.box for event in trajectory.events if event.box is not None and event.error is None]
    shown = [span.box for span in trajectory.spans if isinstance(span, CropSpan)]
    # What was put in a command's place on purpose is not what was asked for; without crops nothing is shown.
    is_as_asked = look.crop_source not in ("random_region", "none") and look.corruption is None
    if is_as_asked and accepted[: len(shown)] != shown:
        yield "the boxes that were accepted are not those of the crops"


def _other_ids(kept: KeptRollout, trajectory: Trajectory, now: Encoded, encoder: Encoder) -> Iterator[str]:
    """``now`` is what the trainer would take."""
    for span in trajectory.spans:
        if isinstance(span, SampledSpan) and encoder.decode(span.token_ids or ()) != span.text:
            yield f"the sampled text {span.text[:40]!r} is not that of its ids"
    for name, old, new in (
        ("ids", kept.token_ids, now.ids),
        ("mask of what was sampled", kept.sampled_mask, now.sampled),
    ):
        before = np.asarray(() if old is None else old, dtype=new.dtype)
        if not np.array_equal(before, new):
            shared = min(len(before), len(new))
            different = np.flatnonzero(before[:shared] != new[:shared])
            place = int(different[0]) if len(different) else shared
            yield f"its {name} ({len(before)}) are others now ({len(new)}), from token {place} on"


def _other_rewards(kept: KeptRollout, now: Rollout) -> Iterator[str]:
    old, new = kept.transcript.reward, now.trajectory.reward
    if (old is None) != (new is None):
        yield f"kept {'without' if old is None else 'with'} a reward, which is otherwise now"
    if old is not None and new is not None:
        for name in ("accuracy", "format", "validity", "length"):
            before, after = getattr(old, name), getattr(new, name)
            if abs(before - after) > _REWARD_TOLERANCE:
                yield f"its {name} reward was {before:g} and comes to {after:g} now"
    if not np.isclose(kept.advantage, now.advantage, rtol=0, atol=_ADVANTAGE_TOLERANCE, equal_nan=True):
        yield f"its advantage was {kept.advantage:g} and comes to {now.advantage:g} now"
    if kept.is_trained != now.is_trained:
        yield f"it was {'' if kept.is_trained else 'not '}trained on, which is otherwise now"


def _first(
    trajectory: Trajectory, encoded: Encoded, gaps: np.ndarray, encoder: Encoder, tolerance: float
) -> Divergence | None:
    """``gaps`` (N,): of the sampled tokens. A difference that is no number diverges too."""
    far = np.flatnonzero(~(np.abs(gaps) <= tolerance))
    if not len(far):
        return None
    number = int(far[0])
    place = int(np.flatnonzero(encoded.sampled)[number])
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    ends = np.cumsum([len(span.token_ids or ()) for span in spans])
    engine = float(encoded.engine_logprobs[place])
    token_id = int(encoded.ids[place])
    return Divergence(
        number=number,
        turn=int(np.searchsorted(ends, number, side="right")),
        token_id=token_id,
        token=encoder.tokenizer.decode([token_id]),
        before=encoder.decode(encoded.ids[max(0, place - _CONTEXT_TOKENS) : place].tolist()),
        engine=engine,
        reference=engine + float(gaps[number]),
    )
