"""What must hold before R-GRPO is begun, tried on one real batch: minutes, before the hours.

    python -m models.rgrpo.preflight RUN_DIR
    torchrun --nproc-per-node N -m models.rgrpo.preflight RUN_DIR

The batch goes the way that every later one goes: sampled by the engine, scored, encoded, put through the
policy. Each fault that this looks for trains without a word of complaint, and each is known from public
projects: weights or pictures that differ between engine and trainer, a picture that is shifted against its
pads, rotary positions that fall back to one dimension, text of ours that is trained as if it were sampled,
boxes in the wrong pixels, caches that outlive the weights they were made with, and rewards from which nothing
can be learned, or the wrong thing.

``preflight.json`` in the run directory keeps what was found (:class:`models.check.Preflight`),
``preflight.parquet`` the batch.
"""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from models import distributed
from models.check import PREFLIGHT, Check, Preflight
from models.child import run_stage
from models.config import Look, RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.errors import GateError
from models.policy import Policy
from models.records import Question
from models.rgrpo.actors import Actors, opened
from models.rgrpo.batch import Batch, score_and_compare
from models.rgrpo.box_check import boxes_are_right
from models.rgrpo.mismatch import measure_mismatch
from models.rgrpo.outcomes import Outcome
from models.rgrpo.rewards import reward_floor
from models.rgrpo.rollouts import write_rollouts
from models.rgrpo.samplers import Sampler
from models.rollout import derive_seed
from models.run_config import RGRPORun
from models.rundir import Result, RunDir, write_atomically
from models.shuffling import endless_shuffle
from models.trajectory import SampledSpan, Trajectory

log = logging.getLogger(__name__)

PREFLIGHT_ROLLOUTS = "preflight.parquet"  # as a step's

# Norm weights times 1 + this times a standard normal: enough to change every log-prob, not to overflow.
_NOISE = 0.5
_CANARY_TOKENS = 48
# Largest difference of two log-probs (nats) that are the same computation done twice.
_SAME = {"float32": 1e-4, "bfloat16": 0.05}
# The same of two programs that see the same picture; in bfloat16 they may also come to write another text.
_ALIKE = {"float32": 1e-4, "bfloat16": 0.5}


def main(run: RunDir, config: RGRPORun) -> Result:
    """Look, and train nothing."""
    with opened(config) as actors:
        check_before(run, config, actors)
    return Result(status="done", artifacts={"preflight": PREFLIGHT})


def check_before(run: RunDir, config: RGRPORun, actors: Actors) -> None:
    """Look at everything and keep what was found; all ranks call it.

    The engine is left with the policy's weights and empty caches. Raises GateError that names what is broken.
    """
    found = Preflight(checks=tuple(_checks(run, config, actors)))
    if distributed.is_main():
        write_atomically(run.path / PREFLIGHT, found.model_dump_json(indent=2))
        for check in found.checks:
            log.info("preflight %s: %s", check.name, check)
    broken = [
        f"{check.name}: {check.rule} (found: {check.value})" for check in found.checks if not check.passed
    ]
    if broken:
        raise GateError(
            f"R-GRPO is not begun, for on one real batch {len(broken)} of {len(found.checks)} checks fail. "
            f"{'; '.join(broken)}. All that was found is in {PREFLIGHT} of the run directory, the batch in "
            f"{PREFLIGHT_ROLLOUTS}; the limits are rgrpo.preflight.*, rgrpo.max_mismatch_kl and "
            "rgrpo.max_failed_share."
        )


def _checks(run: RunDir, config: RGRPORun, actors: Actors) -> Iterator[Check]:
    engine, sampler, training = actors.engine, actors.sampler, config.rgrpo
    policy: Policy = engine.module
    questions = _share(actors.questions, config)
    trajectories, batch = _sampled(run, config, actors, questions)
    failures = _failures(batch.outcomes, training)
    yield failures
    if not failures.passed:  # there may be nothing left to look at
        return
    scored = [one for one in trajectories if not one.is_our_failure and one.num_sampled_tokens]
    pairs = [(one, policy.encoder.encode(one)) for one in scored]
    asked = {question.id: question for question in questions}
    with distributed.gathered(engine):
        has_features = [_pads_are_features(policy, encoded) for _, encoded in pairs]
    pads = _count("image pads", has_features, "every image pad has its visual feature")
    yield pads
    yield _count(
        "sampled mask",
        [_mask_is_what_was_sampled(policy, *pair) for pair in pairs],
        "exactly what the engine sampled carries loss",
    )
    boxes = _count(
        "boxes",
        [boxes_are_right(one, asked[one.question_id], config.look) for one in scored],
        "a crop is what the numbers in the text enclose in the original picture",
    )
    # Without a crop it says little.
    (num_crops,) = distributed.global_sums([sum(len(one.crops) for one in scored)])
    yield boxes.model_copy(update={"value": f"{boxes.value}, {num_crops:.0f} crops"})
    if pads.passed:  # else there are no positions, and nothing to put through the policy
        yield _count(
            "rotary positions",
            [_positions_agree(policy, encoded) for _, encoded in pairs],
            "positions are those that transformers computes",
        )
        yield _mismatch(engine, [encoded for _, encoded in pairs], batch.spare, config)
    yield _canary(engine, sampler, questions[0], config)
    if sampler.shares_tower:
        yield _towers(sampler, questions[0], config)
    yield _spread(batch, training)
    yield _floor(config)


def _sampled(
    run: RunDir, config: RGRPORun, actors: Actors, questions: Sequence[Question]
) -> tuple[list[Trajectory], Batch]:
    """The batch as a step would have it, kept in the run directory."""
    training = config.rgrpo
    trajectories = actors.sampler.roll_out(
        questions,
        look=config.look,
        num_samples=training.group_size,
        temperature=training.temperature,
        seed=derive_seed(config.seed, "preflight", 0),
    )
    batch = score_and_compare(
        trajectories,
        questions,
        training,
        encoder=actors.engine.module.encoder,
        max_tokens=config.look.max_sampled_tokens,
    )
    write_rollouts(run.path / PREFLIGHT_ROLLOUTS, batch.rollouts, step=0)
    return trajectories, batch


def _spread(batch: Batch, training: RGRPOConfig) -> Check:
    share, limit = batch.metrics["rgrpo/zero_variance_share"], training.preflight.max_zero_variance_share
    return Check(
        name="spread of rewards",
        value=f"a share of {share:.2f}",
        rule=f"at most a share of {limit:g} of the groups has equal rewards",
        passed=share <= limit,
    )


def _share(questions: Sequence[Question], config: RGRPORun) -> list[Question]:
    """This rank's questions of the batch."""
    num_ranks = config.rgrpo.num_ranks
    per_rank = min(max(1, config.rgrpo.preflight.num_questions // num_ranks), len(questions) // num_ranks)
    chosen = endless_shuffle(len(questions), start=0, count=per_rank * num_ranks, seed=config.seed)
    return [questions[index] for index in chosen[distributed.rank() * per_rank :][:per_rank]]


def _failures(outcomes: Sequence[Outcome], training: RGRPOConfig) -> Check:
    """What the training looks at in every step: attempts that we broke earn nothing and teach nothing."""
    failed = [outcome for outcome in outcomes if outcome.reward is None]
    first = f": {failed[0].stop}, {failed[0].detail or 'no detail'}" if failed else ""
    return Check(
        name="engine",
        value=f"{len(failed)} of {len(outcomes)} trajectories failed{first}",
        rule=f"at most a share of {training.max_failed_share:g} of the trajectories fails on our side",
        passed=len(failed) <= training.max_failed_share * len(outcomes),
    )


def _mismatch(engine: DeepSpeedEngine, encoded: Sequence[Encoded], spare: Encoded, config: RGRPORun) -> Check:
    """KL(engine || trainer), k3, over the batch: what the guard of the training looks at in every step."""
    training = config.rgrpo
    found = measure_mismatch(engine, encoded, training, spare=spare)
    return Check(
        name="engine and trainer",
        value=f"{found.kl:.3g} nats per token, {found.num_tokens} tokens",
        rule=f"their log-probs differ by at most {training.max_mismatch_kl:g} (k3)",
        passed=found.kl <= training.max_mismatch_kl,
    )


def _pads_are_features(policy: Policy, encoded: Encoded) -> bool:
    pads = int((encoded.ids == policy.encoder.image_token_id).sum())
    return pads == sum(len(features) for features in policy.features(encoded.pictures))


def _positions_agree(policy: Policy, encoded: Encoded) -> bool:
    ids = torch.from_numpy(encoded.ids)[None]
    is_image = (ids == policy.encoder.image_token_id).int()
    grids = policy.encoder.patches(encoded.pictures)[1] if encoded.pictures else None
    expected, _ = policy.model.model.get_rope_index(ids, is_image, image_grid_thw=grids)
    return np.array_equal(encoded.positions, expected[:, 0].numpy())


def _mask_is_what_was_sampled(policy: Policy, trajectory: Trajectory, encoded: Encoded) -> bool:
    """Brute force, from the engine's own pieces; vision tokens are never among them."""
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    ids = [token for span in spans for token in span.token_ids or ()]
    logprobs = [value for span in spans for value in span.logprobs or ()]
    return (
        encoded.ids[encoded.sampled].tolist() == ids
        and np.array_equal(encoded.engine_logprobs[encoded.sampled], np.asarray(logprobs, dtype=np.float32))
        and not set(ids) & set(policy.encoder.banned_ids)
    )


def _canary(
    engine: DeepSpeedEngine,
    sampler: Sampler,
    question: Question,
    config: RGRPORun,
) -> Check:
    """Whether anything that old weights made is left when the engine gets new ones.

    The language model's weights and the tower's are changed one after the other. A question that the engine
    knows must then be answered otherwise than before, and just as one that no cache holds anything of. Once
    the policy's weights are back it must be answered as before.
    """
    name, rule = "caches", "new weights answer a known question as they answer a new one"
    if not sampler.has_weights:
        return Check(name=name, value="none: it samples from the policy itself", rule=rule, passed=True)
    policy: Policy = engine.module
    limit = _SAME[config.engine.dtype]
    wrong, found = [], []
    with distributed.gathered(engine), sampler.looking_itself():
        before = _first_turn(sampler, question, config.look)
        for part, is_part in (("language model", _is_language), ("vision tower", _is_tower)):
            weights = _perturbed(policy.weights(), is_part)
            sampler.update_weights(weights, version=sampler.version)
            known = _first_turn(sampler, question, config.look)
            new = _first_turn(sampler, question, config.look, salt=f"canary {part}")
            moved, stale = new.distance(before), known.distance_of_same(new)
            found.append(f"{part}: moved by {_nats(moved)}, known from new by {_nats(stale)}")
            if stale > limit or (moved <= limit and new.ids == before.ids):
                wrong.append(part)
        sampler.update_weights(policy.weights(), version=sampler.version)
        restored = _first_turn(sampler, question, config.look).distance_of_same(before)
        sampler.update_weights(policy.weights(), version=sampler.version)  # empties the caches
    found.append(f"put back: {_nats(restored)}")
    wrong += ["put back"] if restored > limit else []
    everywhere = sorted({part for parts in distributed.from_all_ranks(wrong) for part in parts})
    if everywhere:
        found.append(f"wrong: {', '.join(everywhere)}")
    return Check(name=name, value="; ".join(found), rule=rule, passed=not everywhere)


def _towers(sampler: Sampler, question: Question, config: RGRPORun) -> Check:
    """Whether the engine's own tower sees what the trainer's does. The engine is given the trainer's
    features, so a fault in these is no mismatch of the two.

    On one question, by its greedy first turn: k3 over it, and the largest difference of a token, for most of
    its tokens are certain whatever is seen. The worst rank counts.
    """
    limit = config.rgrpo.max_mismatch_kl
    is_exact = config.engine.dtype == config.rgrpo.precision == "float32"
    largest = _ALIKE["float32" if is_exact else "bfloat16"]
    given = _first_turn(sampler, question, config.look)
    with sampler.looking_itself():
        own = _first_turn(sampler, question, config.look)
    gap = distributed.global_max(given.mismatch(own))
    far = distributed.global_max(given.distance_of_same(own) if is_exact else given.distance(own))
    return Check(
        name="vision towers",
        value=f"{gap:.3g} nats per token, {_nats(far)} at most",
        rule=f"the engine's own tower and the trainer's give log-probs that differ by at most {limit:g} "
        f"(k3), and none by more than {largest:g} nats",
        passed=gap <= limit and far <= largest,
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """A greedy first turn: ids, and their log-probs in nats."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def distance(self, other: "_Turn") -> float:
        """The largest difference of two log-probs while both wrote the same; infinite when they never did."""
        return max(map(abs, self._gaps(other)), default=float("inf"))

    def distance_of_same(self, other: "_Turn") -> float:
        """The same for turns that must have been written alike; infinite when their texts differ."""
        return self.distance(other) if self.ids == other.ids else float("inf")

    def mismatch(self, other: "_Turn") -> float:
        """The mean k3 of those log-probs, nats; infinite when both never wrote the same."""
        gaps = self._gaps(other)
        return sum(math.expm1(gap) - gap for gap in gaps) / len(gaps) if gaps else float("inf")

    def _gaps(self, other: "_Turn") -> list[float]:
        both = zip(self.ids, other.ids, self.logprobs, other.logprobs, strict=False)
        return [a - b for *_, a, b in takewhile(lambda one: one[0] == one[1], both)]


def _nats(distance: float) -> str:
    return f"{distance:.2g} nats" if math.isfinite(distance) else "another text"


def _first_turn(sampler: Sampler, question: Question, rules: Look, *, salt: str = "") -> _Turn:
    """With a ``salt`` no cache knows the question."""
    short = rules.model_copy(
        update={"max_sampled_tokens": min(_CANARY_TOKENS, rules.max_sampled_tokens), "max_turns": 1}
    )
    (trajectory,) = sampler.roll_out([question], look=short, salt=salt)
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    return _Turn(
        tuple(token for span in spans for token in span.token_ids or ()),
        tuple(value for span in spans for value in span.logprobs or ()),
    )


def _is_tower(name: str) -> bool:
    return ".visual." in f".{name}"


def _is_language(name: str) -> bool:
    return not _is_tower(name)


def _perturbed(
    weights: Iterable[tuple[str, Tensor]], is_chosen: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor]]:
    """The same weights with noise on the norms of a part, which act on all that passes through it."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights:
        if is_chosen(name) and tensor.ndim == 1 and ("norm" in name or "ln_" in name):
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
            yield name, (tensor * (1 + _NOISE * noise)).to(tensor.dtype)
        else:
            yield name, tensor


def _floor(config: RGRPORun) -> Check:
    """What style earns without sight; a high floor pays for form."""
    floor, highest = reward_floor(config.rgrpo.reward, config.look)
    limit = config.rgrpo.preflight.max_reward_floor
    return Check(
        name="reward floor",
        value=f"a wrong answer in full style earns {floor:g} of {highest:g}",
        rule=f"at most a share of {limit:g}",
        passed=floor <= limit * highest,
    )


def _count(name: str, is_right: Sequence[bool], rule: str) -> Check:
    """One check over the trajectories of all ranks."""
    wrong, total = distributed.global_sums([len(is_right) - sum(is_right), len(is_right)])
    return Check(
        name=name,
        value=f"{total - wrong:.0f} of {total:.0f} trajectories",
        rule=rule,
        passed=total > 0 and not wrong,
    )


if __name__ == "__main__":
    sys.exit(run_stage(main, RGRPORun, sys.argv[1:]))
