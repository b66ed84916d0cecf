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
``preflight.parquet`` the batch. A run that goes on from a checkpoint in another way, on other devices or with
other libraries, is looked at again: they are what puts engine and trainer apart.
"""

import logging
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from models import distributed
from models.check import PREFLIGHT, Check, Preflight
from models.child import run_stage
from models.config import RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.errors import GateError
from models.policy import Policy
from models.records import Question
from models.rgrpo.actors import Actors, opened
from models.rgrpo.batch import Batch, score_and_compare
from models.rgrpo.box_check import boxes_are_right
from models.rgrpo.canary import check_caches, check_towers
from models.rgrpo.mismatch import measure_mismatch
from models.rgrpo.outcomes import Outcome, unencodable
from models.rgrpo.rewards import reward_floor
from models.rgrpo.rollouts import write_rollouts
from models.rollout import derive_seed
from models.run_config import RGRPORun
from models.rundir import Result, RunDir, write_atomically
from models.shuffling import endless_shuffle
from models.trajectory import SampledSpan, Trajectory

log = logging.getLogger(__name__)

PREFLIGHT_ROLLOUTS = "preflight.parquet"  # as a step's


def main(run: RunDir, config: RGRPORun) -> Result:
    """Look, and train nothing."""
    with opened(config) as actors:
        check_before(run, config, actors)
    return Result(status="done", artifacts={"preflight": PREFLIGHT})


def is_due(run: RunDir, config: RGRPORun) -> bool:
    """Whether it was not yet found in order as the run is run now; all ranks call it."""
    found = distributed.from_main(lambda: Preflight.read(run.path))
    return not (found.passed and found.under == _under(config))


def check_before(run: RunDir, config: RGRPORun, actors: Actors, *, is_begun: bool = False) -> None:
    """Look at everything and keep what was found; all ranks call it.

    What the questions and rewards are worth is a matter of the beginning, and not looked at once it
    ``is_begun``. The engine has the policy's weights, and is left with them and empty caches. Raises
    GateError that names what is broken.
    """
    found = Preflight(checks=tuple(_checks(run, config, actors, is_begun=is_begun)), under=_under(config))
    if is_begun:
        found = distributed.from_main(lambda: Preflight.read(run.path)).renewed(found)
    if distributed.is_main():
        write_atomically(run.path / PREFLIGHT, found.model_dump_json(indent=2))
        for check in found.checks:
            log.info("preflight %s: %s", check.name, check)
    broken = [
        f"{check.name}: {check.rule} (found: {check.value})" for check in found.checks if not check.passed
    ]
    if broken:
        verb = "does not go on" if is_begun else "is not begun"
        raise GateError(
            f"R-GRPO {verb}, for on one real batch {len(broken)} of {len(found.checks)} checks fail. "
            f"{'; '.join(broken)}. All that was found is in {PREFLIGHT} of the run directory, the batch in "
            f"{PREFLIGHT_ROLLOUTS}; the limits are rgrpo.preflight.*, rgrpo.max_mismatch_kl and "
            "rgrpo.max_failed_share."
        )


def _under(config: RGRPORun) -> str:
    """How engine and trainer are put together, on what, by which libraries."""
    training = config.rgrpo
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    libraries = [f"{name} {_version_of(name)}" for name in ("torch", "transformers", "deepspeed", "vllm")]
    ranks = f"{training.num_ranks} ranks, {training.placement}, ZeRO {training.zero_stage}"
    return ", ".join([ranks, device, *libraries])


def _version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"


def _checks(run: RunDir, config: RGRPORun, actors: Actors, *, is_begun: bool) -> Iterator[Check]:
    engine, sampler, training = actors.engine, actors.sampler, config.rgrpo
    policy: Policy = engine.module
    questions = _share(actors.questions, config)
    batch = _sampled(run, config, actors, questions)
    sampler.rest()  # as in a step: the policy's passes may need the memory
    failures = _failures(batch.outcomes, training)
    yield failures
    if not failures.passed:  # there may be nothing left to look at
        return
    encoding = _encoding(batch.outcomes)
    yield encoding
    if not encoding.passed:
        return
    usable = (one for one in batch.rollouts if one.trajectory.can_be_compared)
    pairs = [(one.trajectory, one.encoded) for one in usable if one.encoded is not None]
    scored = [trajectory for trajectory, _ in pairs]
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
    actors.show_weights(version=sampler.version)
    yield check_caches(engine, sampler, questions[0], config)
    if sampler.shares_tower:
        yield check_towers(sampler, questions[0], config)
    if not is_begun:
        yield _spread(batch, training)
        yield _floor(config)


def _sampled(run: RunDir, config: RGRPORun, actors: Actors, questions: Sequence[Question]) -> Batch:
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
        look=config.look,
    )
    write_rollouts(run.path / PREFLIGHT_ROLLOUTS, batch.rollouts, step=0)
    return batch


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


def _encoding(outcomes: Sequence[Outcome]) -> Check:
    """Ids that the model does not have, ids that are banned, or log-probs that are missing."""
    faults = unencodable(outcomes)
    first = f": {faults[0]}" if faults else ""
    return Check(
        name="encoding",
        value=f"{len(faults)} of {len(outcomes)} trajectories cannot be{first}",
        rule="what the engine sampled can be encoded for the trainer",
        passed=not faults,
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
