"""Rollouts that are sampled while the step before them is trained: whose they are, what they weigh, and that
a killed run goes on with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_grad

from models import distributed
from models.config import GuardsConfig, ObjectiveConfig
from models.encoding import Encoded
from models.errors import GuardError
from models.policy import Policy, collate, load_policy
from models.records import write_questions
from models.rgrpo import overlap, update
from models.rgrpo import train as rgrpo
from models.rgrpo.objective import Totals
from models.rgrpo.replay import replay
from models.rgrpo.update import Sample
from models.rollout import rollout
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.transformers_engine import TransformersEngine
from tests.killed import files_of, last_step, metrics_of, rollouts_of, stage
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, TRANSFORMERS, VLLM, questions, records, rgrpo_config, rgrpo_run

pytestmark = pytest.mark.integration

RGRPO = "models.rgrpo.train"
NUM_STEPS = 5
TRAINING = rgrpo_config(
    num_steps=NUM_STEPS,
    group_size=4,
    num_threads=1,
    placement="dedicated",
    overlap=True,
    objective=ObjectiveConfig(aggregation="token-mean", clip_high=0.28, engine_weight_cap=2.0),
    guards=GuardsConfig(probe_every=2, probe_questions=2),
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"), tied=True)


def make_run(
    folder: Path, model_path: Path, *, num_ranks: int = 1, kind: str = "transformers", **changes: object
) -> RunDir:
    folder.mkdir()
    write_questions(folder.parent / "questions.parquet", questions(8))
    # Slices of the policy, where there is somebody to share it with.
    training = TRAINING.model_copy(
        update={"num_ranks": num_ranks, "zero_stage": 3 if num_ranks > 1 else 2, **changes}
    )
    engine = VLLM.model_copy(update={"kind": kind})
    config = rgrpo_run(
        model_path, folder.parent / "questions.parquet", training, engine=engine, is_probed=True
    )
    return RunDir.create(folder / "run", config)


@pytest.fixture(
    scope="module",
    params=[
        (1, "transformers"),
        pytest.param((2, "transformers"), marks=pytest.mark.slow),
        pytest.param((1, "vllm"), marks=pytest.mark.slow),
    ],
    ids=["transformers", "two-ranks", "vllm"],
)
def shape(request: pytest.FixtureRequest) -> tuple[int, str]:
    return request.param


@pytest.fixture(scope="module")
def unbroken(shape: tuple[int, str], model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    num_ranks, kind = shape
    run = make_run(tmp_path_factory.mktemp("unbroken") / "all", model_path, num_ranks=num_ranks, kind=kind)
    if num_ranks == 1:
        rgrpo.train(run, RGRPORun.model_validate_json(run.config_text()))
        return run
    with stage(RGRPO, run, num_ranks=num_ranks) as whole:
        whole.finish()
    return run


def test_every_token_says_who_sampled_it_and_like_is_compared_with_like(unbroken: RunDir) -> None:
    steps = metrics_of(unbroken)
    for number in range(1, NUM_STEPS + 1):
        behind = 0 if number == 1 else 1
        assert steps[number]["rgrpo/staleness_mean"] == steps[number]["rgrpo/staleness_max"] == behind
        # The last step samples nothing.
        assert ("rgrpo/mismatch_max" in steps[number]) == (number < NUM_STEPS)
        assert steps[number].get("rgrpo/mismatch_max", 0.0) < 1e-4
    # What has honestly moved is no mismatch: beyond the first step it is far larger.
    assert max(steps[number]["rgrpo/stale_max"] for number in range(2, NUM_STEPS + 1)) > 1e-2
    stale = [steps[number]["rgrpo/stale_kl"] for number in range(1, NUM_STEPS + 1)]
    assert max(stale) < TRAINING.guards.max_stale_kl
    rows = rollouts_of(unbroken)
    assert len(rows) == NUM_STEPS * 2 * 4
    for row in rows:
        versions = {span["policy_version"] for span in row["spans"] if span["kind"] == "sampled"}
        assert versions == {max(row["step"] - 1, 0)}


def test_a_killed_run_goes_on_with_the_rollouts_that_it_had(
    tmp_path: Path, unbroken: RunDir, shape: tuple[int, str], model_path: Path
) -> None:
    num_ranks, kind = shape
    broken = make_run(tmp_path / "all", model_path, num_ranks=num_ranks, kind=kind)
    with stage(RGRPO, broken, num_ranks=num_ranks) as first:
        first.kill_when(lambda: last_step(broken) >= 3)
    assert [path.name for path in broken.checkpoints()] == ["step-2"]
    with stage(RGRPO, broken, num_ranks=num_ranks) as second:
        second.finish()
    assert "resumed from" in (broken.path / "log.txt").read_text()
    assert sum(line.get("rgrpo/updated", 0) for line in metrics_of(unbroken).values()) >= 3
    assert rollouts_of(broken) == rollouts_of(unbroken)
    assert metrics_of(broken) == metrics_of(unbroken)
    assert files_of(broken.path / "model") == files_of(unbroken.path / "model")


def test_a_policy_that_outruns_its_rollouts_pauses_the_run(tmp_path: Path, model_path: Path) -> None:
    """One update at this rate takes it about one nat per token away."""
    guards = GuardsConfig(
        window=2, probe_every=0, max_truncated_share=1, max_all_wrong_share=1, max_entropy=20
    )
    run = make_run(tmp_path / "all", model_path, learning_rate=0.03, checkpoint_every=1, guards=guards)
    said = r"Step 2: the policy outruns its rollouts.*rgrpo/stale_kl came to .* at most 0\.05\..*max_stale_kl"
    with pytest.raises(GuardError, match=said) as caught:
        rgrpo.train(run, RGRPORun.model_validate_json(run.config_text()))
    assert caught.value.checkpoint == "checkpoints/step-1"


def test_rollouts_ahead_on_which_engine_and_trainer_disagree_are_kept(
    tmp_path: Path, model_path: Path
) -> None:
    run = make_run(tmp_path / "all", model_path, max_mismatch_kl=1e-30)
    with pytest.raises(GuardError, match="on one trajectory of rollouts/"):
        rgrpo.train(run, RGRPORun.model_validate_json(run.config_text()))
    found = replay(run, 1)
    assert (found.updates_again, found.diverging) == (0, ())


@pytest.mark.parametrize("step", [0, 1, 3])
def test_replay_takes_the_policy_that_sampled(unbroken: RunDir, step: int) -> None:
    found = replay(unbroken, step)
    assert found.updates_again == {0: 0, 1: 0, 3: 0}[step]
    assert found.started_from == ("checkpoints/step-2" if step == 3 else "the model that the run began with")
    assert found.diverging == ()
    assert found.largest_difference < 1e-4


def shifted(policy: Policy, one: Encoded, shifts: tuple[float, ...]) -> Encoded:
    """The sequence as an engine sampled it that found its tokens so much less likely, nats, in turn."""
    (own,) = update.score_again(distributed.initialise(policy, TRAINING), [one], TRAINING)
    logprobs = one.engine_logprobs.copy()
    logprobs[one.sampled] = own - np.resize(np.asarray(shifts, dtype=np.float32), len(own))
    return replace(one, engine_logprobs=logprobs)


def test_the_gradient_is_that_of_ratios_to_the_policy_that_sampled(model_path: Path) -> None:
    distributed.start(num_threads=1)
    policy = load_policy(model_path)
    # log r of successive tokens: within the clip, beyond it on either side, and beyond the cap of 2.
    shifts = (0.0, 0.1, 0.5, -0.5, 1.5)
    encoded = [shifted(policy, policy.encoder.encode_record(record, LOOK), shifts) for record in records(2)]
    advantages = (1.0, -1.5)
    num_tokens = sum(one.num_sampled for one in encoded)

    reference = load_policy(model_path)
    batch = collate(encoded, reference)
    logprobs = reference(batch, temperature=TRAINING.temperature)
    loss = torch.zeros(())
    for row, advantage in enumerate(advantages):
        sampled = batch.sampled[row, 1:]
        ratio = torch.exp(logprobs[row] - batch.engine_logprobs[row, 1:]).detach()[sampled]
        clipped = ratio > 1.28 if advantage > 0 else ratio < 0.8
        weight = torch.where(clipped, 0.0, ratio.clamp(max=2.0))
        loss = loss - (weight * advantage * logprobs[row][sampled]).sum() / num_tokens
    loss.backward()

    engine = distributed.initialise(load_policy(model_path), TRAINING)
    metrics = update.accumulate_gradient(
        engine,
        [Sample(f"q{row}", 0, one, advantages[row]) for row, one in enumerate(encoded)],
        spare=encoded[0],
        totals=Totals(2, 2, num_tokens, 24),
        config=TRAINING,
    )
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, parameter in engine.module.named_parameters():
        torch.testing.assert_close(safe_get_full_grad(parameter), expected[name], rtol=1e-4, atol=1e-5)
    assert metrics["rgrpo/clipped_share"] > 0
    num_cut = sum(one.num_sampled // len(shifts) for one in encoded)
    assert metrics["rgrpo/engine_weight_cut_share"] == pytest.approx(num_cut / num_tokens)
    assert "rgrpo/mismatch_kl" not in metrics
    assert metrics["rgrpo/stale_max"] == pytest.approx(1.5, abs=1e-4)


def test_another_engine_is_stopped_although_its_rollouts_are_ahead(model_path: Path) -> None:
    distributed.start(num_threads=1)
    policy = load_policy(model_path)
    engine = distributed.initialise(policy, TRAINING)
    other = TransformersEngine(policy, TRANSFORMERS)
    weight = policy.model.model.language_model.norm.weight

    def compare() -> dict[str, float]:
        spare = policy.encoder.encode(rollouts[0])
        return overlap.compare_like_with_like(engine, rollouts, TRAINING, encoder=policy.encoder, spare=spare)

    rollouts = rollout(other, questions(2), look=LOOK, num_samples=TRAINING.group_size, temperature=1.0)
    assert compare()["rgrpo/mismatch_kl"] < 1e-8
    with torch.no_grad():
        weight.mul_(1.5)
    with pytest.raises(GuardError, match="Engine and trainer disagree"):
        compare()
