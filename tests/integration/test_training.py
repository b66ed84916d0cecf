"""SFT and R-GRPO with DeepSpeed: a random tiny Qwen2.5-VL in this process, several ranks under torchrun."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import load_file

from models import distributed
from models.checkpoints import Progress
from models.config import GuardsConfig, ObjectiveConfig, RewardConfig, SFTConfig
from models.encoding import Encoder
from models.errors import ConfigError, EncodingError, GuardError, TrainingError
from models.objective_config import PROFILES
from models.packing import pack, pack_groups
from models.policy import Policy, collate, load_policy, load_reference
from models.presets import load_preset
from models.records import write_questions, write_records
from models.rgrpo import train as rgrpo
from models.rgrpo import update
from models.rgrpo.actors import Actors
from models.rgrpo.objective import Totals
from models.rgrpo.rollouts import read_rollouts, rollouts_path
from models.rgrpo.samplers import Colocated
from models.rgrpo.update import Sample
from models.run_config import RGRPORun, SFTRun
from models.rundir import RunDir
from models.sft import step as sft_step
from models.sft import train as sft
from models.trajectory import SampledSpan, StopReason
from models.transcripts import read_transcripts
from models.transformers_engine import TransformersEngine
from tasks.training import publish_rollouts
from tests.tiny_models import as_published, save_random_model
from tests.training_data import LOOK, questions, records, rgrpo_config, rgrpo_run, sft_run

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

SFT = SFTConfig(
    num_epochs=2,
    batch_size=4,
    tokens_per_micro_batch=1024,
    learning_rate=1e-3,
    precision="float32",
    checkpoint_every=2,
)
RGRPO = rgrpo_config()


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    distributed.start(num_threads=1)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def other_model_path(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("other"), tied=False, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "records.parquet", records(8))
    write_questions(folder / "questions.parquet", questions(8))
    return folder


def make_sft_run(model_path, data, **changes):
    path = data / "records.parquet"
    return sft_run(model_path, path, SFT.model_copy(update=changes), validation_path=path)


def make_run(model_path, data, **changes):
    return rgrpo_run(model_path, data / "questions.parquet", RGRPO.model_copy(update=changes))


def weights(folder):
    return load_file(folder / "model.safetensors")


def encoded_records(policy, count=4):
    return [policy.encoder.encode_record(record, LOOK) for record in records(count)]


def gradients(engine):
    return {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}


def assert_equal(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_as_published_goes_through_both_stages(tmp_path, data, tied):
    model_path = as_published(save_random_model(tmp_path / "model", tied=tied))
    config = make_sft_run(model_path, data, num_epochs=1)
    run = RunDir.create(tmp_path / "sft", config)
    sft.train(run, config)
    config = make_run(model_path, data, num_steps=1)
    run = RunDir.create(tmp_path / "rgrpo", config)
    assert rgrpo.train(run, config).status == "done"
    assert weights(run.path / "model").keys() == weights(tmp_path / "sft" / "model").keys()
    assert ("lm_head.weight" in weights(run.path / "model")) != tied


def test_every_parameter_moves_and_the_tower_stays(model_path):
    policy = load_policy(model_path)
    before = {name: tensor.clone() for name, tensor in policy.weights()}
    engine = distributed.initialise(policy, SFT)
    encoded = encoded_records(policy)
    losses = [
        sft_step.sft_step(engine, encoded, list("abcd"), learning_rate=0.01, max_tokens=1024)["sft/loss"]
        for _ in range(3)
    ]
    assert losses[2] < losses[1] < losses[0]
    for name, tensor in policy.weights():
        moved = not torch.equal(tensor, before[name])
        assert moved != name.startswith("model.visual."), f"{name}: moved is {moved}"


@pytest.mark.parametrize(
    ("zero_stage", "freeze_vision"), [(0, True), (1, True), (2, True), (3, True), (2, False)]
)
def test_sft_gradient_does_not_depend_on_how_the_batch_is_packed(model_path, zero_stage, freeze_vision):
    # All four samples in one row; or one row each, longest first, summed up over four micro-batches.
    lengths = [len(one) for one in encoded_records(load_policy(model_path))]
    assert len(set(lengths)) > 1
    found = []
    for max_tokens in (1024, max(lengths)):
        assert len(pack(lengths, max_tokens=max_tokens)) == (1 if max_tokens == 1024 else 4)
        policy = load_policy(model_path, freeze_vision=freeze_vision)
        engine = distributed.initialise(policy, SFT.model_copy(update={"zero_stage": zero_stage}))
        loss, _ = sft_step.accumulate_gradient(
            engine, encoded_records(policy), list("abcd"), max_tokens=max_tokens
        )
        found.append((loss, gradients(engine)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert_equal(found[1][1], found[0][1])
    assert max(gradient.abs().max() for gradient in found[0][1].values()) > 1e-3


AGGREGATIONS = ("paper-eq2", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm")
OBJECTIVES = [
    *(ObjectiveConfig(aggregation=name) for name in AGGREGATIONS),
    *(ObjectiveConfig(aggregation=name, beta=0.5) for name in ("paper-eq2", "token-mean")),
    PROFILES["standard"].objective,
]
# Token budgets that cut two questions with four rollouts each in one, two and eight micro-batches.
BUDGETS = {640: 1, 360: 2, 136: 8}


def two_groups_of_four(policy):
    """Rollouts of two questions, each a little longer than the one before; no engine sampled them."""
    samples = []
    for record, advantages in zip(records(2), ((1.0, -1.0, 0.5, -0.5), (2.0, 0.0, -1.5, -0.5)), strict=True):
        first, *others = record.steps
        for index, advantage in enumerate(advantages):
            longer = replace(first, text="I look. " * (index + 12) + first.text)
            encoded = policy.encoder.encode_record(replace(record, steps=(longer, *others)), LOOK)
            samples.append(Sample(record.question.id, index, encoded, advantage))
    return samples


def gradient_of(model_path, reference_path, objective, *, max_tokens=640):
    """Metrics and gradients of one batch, cut by a token budget."""
    policy = load_policy(model_path)
    engine = distributed.initialise(policy, RGRPO)
    samples = two_groups_of_four(policy)
    packed = pack_groups([sample.continuation for sample in samples], max_tokens=max_tokens)
    assert len(packed) == BUDGETS[max_tokens]
    metrics = update.accumulate_gradient(
        engine,
        samples,
        spare=samples[0].encoded,
        totals=Totals(2, 8, sum(sample.encoded.num_sampled for sample in samples), 24),
        # There is nothing for the trainer to agree with.
        config=RGRPO.model_copy(
            update={"tokens_per_micro_batch": max_tokens, "max_mismatch_kl": 1e9, "objective": objective}
        ),
        reference=load_reference(reference_path, policy, dtype="float32") if objective.beta else None,
    )
    return metrics, gradients(engine)


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.aggregation}-beta-{o.beta}-cap-{o.engine_weight_cap}"
)
def test_rgrpo_gradient_is_the_same_as_1x8_2x4_and_8x1(model_path, other_model_path, objective):
    (metrics, expected), *others = (
        gradient_of(model_path, other_model_path, objective, max_tokens=budget) for budget in BUDGETS
    )
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-4
    for found_metrics, found in others:
        assert found_metrics["rgrpo/loss"] == pytest.approx(metrics["rgrpo/loss"], rel=1e-4, abs=1e-5)
        assert_equal(found, expected, tolerance=2e-5 * float(largest))
    assert ("rgrpo/reference_kl" in metrics) == (objective.beta > 0)
    # These records have log-probs of 0 for the engine's: every ratio is below the cap.
    assert (metrics["rgrpo/clipped_share"], metrics["rgrpo/engine_weight_cut_share"]) == (0, 0)


def test_tokens_that_the_engine_deemed_unlikely_weigh_as_much_as_the_cap(model_path):
    found = []
    for cap in (0.0, 2.0):
        policy = load_policy(model_path)
        engine = distributed.initialise(policy, RGRPO)
        samples = [
            replace(
                one,
                encoded=replace(one.encoded, engine_logprobs=np.full_like(one.encoded.engine_logprobs, -99)),
            )
            for one in two_groups_of_four(policy)
        ]
        objective = ObjectiveConfig(aggregation="token-mean", engine_weight_cap=cap)
        metrics = update.accumulate_gradient(
            engine,
            samples,
            spare=samples[0].encoded,
            totals=Totals(2, 8, 100, 24),
            config=RGRPO.model_copy(update={"max_mismatch_kl": math.inf, "objective": objective}),
        )
        found.append((metrics["rgrpo/engine_weight_cut_share"], gradients(engine)))
    (uncut, plain), (cut, weighted) = found
    assert (uncut, cut) == (0, 1)
    assert_equal(weighted, {name: 2 * gradient for name, gradient in plain.items()}, tolerance=1e-4)


def test_the_gradient_of_the_penalty_is_that_of_eq_3_per_token(model_path, other_model_path):
    # Independent of objective.py: 1/Q times the sum over sampled tokens, on whole sequences one by one.
    objective = ObjectiveConfig(aggregation="paper-eq2", beta=0.5)
    _, found = gradient_of(model_path, other_model_path, objective)
    _, without = gradient_of(model_path, other_model_path, ObjectiveConfig(aggregation="paper-eq2"))
    policy, reference = load_policy(model_path), load_policy(other_model_path)
    for sample in two_groups_of_four(policy):
        log_pi = policy(collate([sample.encoded], policy))
        log_ref = reference(collate([sample.encoded], policy)).detach()
        ratio = torch.exp(log_ref - log_pi)
        penalty = (ratio - 1 - torch.log(ratio)).sum() / 2
        (0.5 * penalty).backward()
    expected = {name: parameter.grad for name, parameter in policy.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert_equal({name: found[name] - without[name] for name in found}, expected, tolerance=1e-4 * largest)


def test_stages_of_zero_take_the_same_steps_also_stage_0_in_bfloat16(model_path):
    # A step on zero gradients inside DeepSpeed once advanced Adam's clock: the first updates were too small.
    found = {}
    for stage in (0, 2):
        policy = load_policy(model_path)
        config = SFT.model_copy(update={"precision": "bfloat16", "zero_stage": stage})
        engine = distributed.initialise(policy, config)
        encoded = encoded_records(policy)
        found[stage] = [
            sft_step.sft_step(engine, encoded, list("abcd"), learning_rate=0.01, max_tokens=1024)["sft/loss"]
            for _ in range(3)
        ]
    assert found[0] == pytest.approx(found[2], rel=0.02)
    assert found[0][2] < 0.9 * found[0][0]


def test_engine_and_trainer_must_agree(model_path):
    policy = load_policy(model_path)
    engine = distributed.initialise(policy, RGRPO)
    before = {name: tensor.clone() for name, tensor in policy.weights()}
    encoded = encoded_records(policy, 2)
    with pytest.raises(GuardError, match="disagree"):
        update.update_policy(
            engine,
            [Sample("a", 0, encoded[0], 1.0), Sample("b", 0, encoded[1], -1.0)],
            spare=encoded[0],
            totals=Totals(1, 2, 50, 24),
            config=RGRPO,
            learning_rate=0.1,
        )
    assert_equal(dict(policy.weights()), before, tolerance=0)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_and_names_the_sample(model_path):
    policy = load_policy(model_path)
    engine = distributed.initialise(policy, SFT)
    encoded = encoded_records(policy, 3)
    odd = int(np.flatnonzero(encoded[1].sampled)[0])
    # An id that nothing else uses gets an embedding that is not a number.
    unused = policy.encoder.vocab_size - 1
    ids = encoded[1].ids.copy()
    ids[odd - 1] = unused
    encoded[1] = replace(encoded[1], ids=ids)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[unused] = float("nan")
    before = {name: tensor.clone() for name, tensor in policy.weights()}
    with pytest.raises(TrainingError, match="1 samples: middle"):
        sft_step.sft_step(engine, encoded, ["first", "middle", "last"], learning_rate=0.1, max_tokens=1024)
    for name, tensor in policy.weights():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_sft_resumes_as_if_it_had_never_stopped(tmp_path, model_path, data):
    config = make_sft_run(model_path, data)  # 8 records in batches of 4, 2 epochs: 4 steps
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    result = sft.train(RunDir.create(unbroken, config), config)
    run = RunDir.create(broken, config)
    shutil.copytree(unbroken / "checkpoints" / "step-2", broken / "checkpoints" / "step-2")
    sft.train(run, config)
    assert_equal(weights(broken / "model"), weights(unbroken / "model"), tolerance=1e-6)
    # The first three came with the checkpoint.
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 2, 3, 4]
    assert result.status == "done"
    losses = [
        line["sft/validation_loss"] for line in RunDir(unbroken).metrics() if "sft/validation_loss" in line
    ]
    assert len(losses) == 3  # at the start and after each epoch
    assert losses[2] < losses[1] < losses[0]


def test_a_run_that_gets_worse_stops_and_leaves_its_best_model_also_when_it_was_killed(
    tmp_path, model_path, data
):
    # The rate is absurd, so the checks get worse after the first: two of them end the run.
    changes = {"learning_rate": 1.0, "num_epochs": 5, "checkpoint_every": 1}
    stop = {"check_every": 1, "early_stop_patience": 2, "accuracy_questions": 3}
    config = make_sft_run(model_path, data, **changes, **stop)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    run = RunDir.create(unbroken, config)
    result = sft.train(run, config)
    best, last = int(result.metrics["sft/best_step"]), list(run.metrics())[-1]["step"]
    assert last == best + 2 < 10
    assert result.reason.startswith(f"kept the model of step {best}: validation_loss")
    checks = {line["step"]: line["sft/validation_loss"] for line in run.metrics()}
    assert min(checks, key=checks.get) == best
    assert not (unbroken / "best").exists()
    # Killed after the first step that was worse.
    continued = RunDir.create(broken, config)
    shutil.copytree(
        unbroken / "checkpoints" / f"step-{last - 1}", broken / "checkpoints" / f"step-{last - 1}"
    )
    shutil.copytree(unbroken / "model", broken / "best")
    lines = (unbroken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines))
    again = sft.train(continued, config)
    assert again.reason == result.reason
    assert_equal(weights(broken / "model"), weights(unbroken / "model"), tolerance=0)


def test_a_checkpoint_alone_brings_the_best_model_so_far(tmp_path, model_path, other_model_path, data):
    config = make_sft_run(
        model_path, data, learning_rate=1.0, checkpoint_every=1, check_every=1, early_stop_patience=2
    )
    here, elsewhere = (RunDir.create(tmp_path / name, config) for name in ("here", "elsewhere"))
    result = sft.train(here, config)
    step = int(result.metrics["sft/best_step"]) + 1
    name = f"checkpoints/step-{step}"
    # Only the checkpoint outlived the machine; on the other one lies what is not the best of this run.
    shutil.copytree(here.path / name, elsewhere.path / name)
    shutil.copytree(other_model_path, elsewhere.path / "best")
    assert sft.train(elsewhere, config).reason == result.reason
    assert_equal(weights(elsewhere.path / "model"), weights(here.path / "model"), tolerance=0)


def test_accuracy_is_measured_and_disturbs_nothing(tmp_path, model_path, data):
    plain = make_sft_run(model_path, data)
    asked = make_sft_run(model_path, data, accuracy_questions=4)
    sft.train(RunDir.create(tmp_path / "plain", plain), plain)
    run = RunDir.create(tmp_path / "asked", asked)
    sft.train(run, asked)
    assert_equal(weights(run.path / "model"), weights(tmp_path / "plain" / "model"), tolerance=0)
    found = [line for line in run.metrics() if "sft/accuracy" in line]
    assert [line["step"] for line in found] == [0, 2, 4]
    assert all(line["sft/accuracy"] == line["sft/accuracy/read"] for line in found)
    assert all(line["sft/unscored_share"] == 0 for line in found)


def test_a_step_that_is_refused_for_failures_of_ours_leaves_its_rollouts(
    tmp_path, model_path, data, monkeypatch
):
    roll_out = Colocated.roll_out

    def fails(*asked, **settings):
        first, *others = roll_out(*asked, **settings)
        return [replace(first, stop=StopReason.ENGINE_ERROR, detail="out of memory"), *others]

    monkeypatch.setattr(Colocated, "roll_out", fails)
    config = make_run(model_path, data, num_steps=2)
    run = RunDir.create(tmp_path / "run", config)
    with pytest.raises(TrainingError, match=r"1 of 6 trajectories failed .* engine_error, out of memory"):
        rgrpo.train(run, config)
    first, *others = [one.transcript for one in read_rollouts(rollouts_path(run.path, 0))]
    assert (first.reward, first.detail) == (None, "out of memory")
    assert all(one.reward is not None for one in others)


def test_a_run_that_only_ends_on_another_machine_has_its_model_and_no_rollouts(tmp_path, model_path, data):
    """Its last checkpoint was copied, and the machine was lost before the model was kept."""
    config = make_run(model_path, data, num_steps=2, checkpoint_every=2)
    here, there = (RunDir.create(tmp_path / name, config) for name in ("here", "there"))
    rgrpo.train(here, config)
    shutil.copytree(here.path / "checkpoints", there.path / "checkpoints")
    result = rgrpo.train(there, config)
    assert result.status == "done"
    assert result.metrics == here.last_metrics(2)
    assert_equal(weights(there.path / "model"), weights(here.path / "model"), tolerance=0)
    stage = SimpleNamespace(publish=lambda run, paths, kind: (run, *paths, kind))
    assert publish_rollouts(stage, here) == {"rollouts": (here, "rollouts", "rollouts")}
    assert publish_rollouts(stage, there) == {}


@pytest.mark.parametrize("stage", ["sft", "rgrpo"])
def test_a_stage_computes_layers_again_and_comes_to_the_same_bits(
    tmp_path, model_path, data, monkeypatch, stage
):
    initialise, computes_again = distributed.initialise, []

    def watched(policy, config):
        computes_again.append(policy.model.is_gradient_checkpointing)
        return initialise(policy, config)

    monkeypatch.setattr(distributed, "initialise", watched)
    for setting in (False, True):
        changes = {"gradient_checkpointing": setting}
        config = (
            make_sft_run(model_path, data, num_epochs=1, accuracy_questions=2, **changes)
            if stage == "sft"
            else make_run(model_path, data, num_steps=2, **changes)
        )
        run = RunDir.create(tmp_path / str(setting), config)
        (sft if stage == "sft" else rgrpo).train(run, config)
    assert computes_again == [False, True]
    found = weights(tmp_path / "True" / "model")
    assert_equal(found, weights(tmp_path / "False" / "model"), tolerance=0)
    assert not torch.equal(found["lm_head.weight"], weights(model_path)["lm_head.weight"])


def test_a_second_run_finds_every_feature_of_the_first(tmp_path, model_path, data, monkeypatch):
    calls = []
    look_at = Policy._look_at
    monkeypatch.setattr(Policy, "_look_at", lambda *args: calls.append(1) or look_at(*args))
    config = make_sft_run(model_path, data).model_copy(update={"features_path": str(tmp_path / "features")})
    counts = []
    for name in ("first", "second"):
        sft.train(RunDir.create(tmp_path / name, config), config)
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1]
    assert_equal(weights(tmp_path / "second" / "model"), weights(tmp_path / "first" / "model"), tolerance=0)


def test_more_sft_lasts_its_seconds_and_ends_at_the_lowest_rate(tmp_path, model_path, data):
    config = make_sft_run(model_path, data, max_seconds=3.0, checkpoint_every=1000)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    lines = [line for line in run.metrics() if "sft/learning_rate" in line]
    assert len(lines) > 4  # more steps than the two epochs have
    # The step in which the time is over is the last.
    assert lines[-2]["progress/done"] < 3.0 <= lines[-1]["progress/done"]
    assert lines[-1]["sft/learning_rate"] < 0.3 * SFT.learning_rate


def test_too_many_long_records_stop_the_run(tmp_path, model_path, data):
    config = make_sft_run(model_path, data, max_tokens=64)
    with pytest.raises(TrainingError, match=r"8 of 8 records .* sft.max_tokens 64"):
        sft.train(RunDir.create(tmp_path / "run", config), config)


def test_a_long_record_is_left_out_whole_counted_and_named(tmp_path, model_path, data, caplog):
    encoder = load_policy(model_path).encoder
    lengths = {record.question.id: len(encoder.encode_record(record, LOOK)) for record in records(8)}
    limit = max(lengths.values()) - 1
    long = [name for name, length in lengths.items() if length > limit]
    config = make_sft_run(model_path, data, max_tokens=limit, max_dropped=1.0, num_epochs=1)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    assert next(run.metrics())["sft/dropped"] == len(long) > 0
    assert all(f"{name} is left out: {limit + 1} tokens" in caplog.text for name in long)


def test_a_record_that_no_micro_batch_holds_is_left_out_before_the_first_step(tmp_path, model_path, data):
    encoder = load_policy(model_path).encoder
    lengths = [len(encoder.encode_record(record, LOOK)) for record in records(8)]
    budget = max(lengths) - 1
    config = make_sft_run(model_path, data, tokens_per_micro_batch=budget, num_epochs=1)
    with pytest.raises(TrainingError, match=f"of 8 records .* sft.tokens_per_micro_batch {budget};"):
        sft.train(RunDir.create(tmp_path / "refused", config), config)
    config = config.model_copy(update={"sft": config.sft.model_copy(update={"max_dropped": 1.0})})
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    assert next(run.metrics())["sft/dropped"] == lengths.count(max(lengths))


def test_rgrpo_resumes_as_if_it_had_never_stopped(tmp_path, model_path, data):
    config = make_run(model_path, data)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    rgrpo.train(RunDir.create(unbroken, config), config)
    run = RunDir.create(broken, config)
    shutil.copytree(unbroken / "checkpoints" / "step-2", broken / "checkpoints" / "step-2")
    rgrpo.train(run, config)
    assert_equal(weights(broken / "model"), weights(unbroken / "model"), tolerance=1e-6)
    lines = list(RunDir(unbroken).metrics())
    assert sum(line.get("rgrpo/updated", 0) for line in lines) > 0, (
        "no group had any spread: the test is void"
    )
    assert all(line["rgrpo/mismatch_kl"] < 1e-6 for line in lines if "rgrpo/mismatch_kl" in line)


def test_every_rollout_is_kept_with_its_policy_version(tmp_path, model_path, data):
    config = make_run(model_path, data, num_steps=2)
    run = RunDir.create(tmp_path / "run", config)
    rgrpo.train(run, config)
    for step in (0, 1):
        kept = read_transcripts(run.path / "rollouts" / f"step-{step}.parquet")
        assert len(kept) == 2 * 3
        assert {span.policy_version for one in kept for span in one.spans if hasattr(span, "token_ids")} == {
            step
        }
        assert all(one.reward is not None for one in kept)
        assert len({one.question_id for one in kept}) == 2


def test_drift_is_that_of_the_spans_that_are_kept(tmp_path, model_path, data):
    config = make_run(model_path, data, num_steps=1)
    run = RunDir.create(tmp_path / "run", config)
    rgrpo.train(run, config)
    tokenizer = load_policy(model_path).encoder.tokenizer
    spans = [
        list(span.token_ids)
        for one in read_transcripts(run.path / "rollouts")
        for span in one.spans
        if isinstance(span, SampledSpan)
    ]
    drifted = [tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids for ids in spans]
    assert any(drifted), "no span drifted: the test is void"
    (line,) = [line for line in run.metrics() if line["step"] == 1]
    assert line["rgrpo/retokenisation_drift"] == pytest.approx(sum(drifted) / len(drifted))


def test_questions_that_do_not_fill_the_last_step_of_an_epoch(tmp_path, model_path, data):
    """8 questions, 3 a step: the third step would begin one epoch and end in the next."""
    config = make_run(model_path, data, num_steps=5, questions_per_step=3, group_size=2)
    run = RunDir.create(tmp_path / "run", config)
    rgrpo.train(run, config)
    for step in range(5):
        kept = read_transcripts(run.path / "rollouts" / f"step-{step}.parquet")
        assert len({one.question_id for one in kept}) == 3


def test_fewer_questions_than_a_step_takes_are_refused(tmp_path, model_path, data):
    config = make_run(model_path, data, questions_per_step=9)
    with pytest.raises(ConfigError, match=r"holds 8 questions, a step of R-GRPO takes 9 different ones"):
        rgrpo.train(RunDir.create(tmp_path / "run", config), config)


def test_rollouts_that_may_outgrow_a_micro_batch_are_refused_before_the_first_step(
    tmp_path, model_path, data
):
    config = make_run(model_path, data, tokens_per_micro_batch=511)
    said = r"tokens_per_micro_batch 511 must be at least engine.max_model_len 512"
    with pytest.raises(ConfigError, match=said):
        rgrpo.train(RunDir.create(tmp_path / "run", config), config)


def test_a_guard_pauses_the_run_and_it_goes_on_under_another_limit(tmp_path, model_path, data):
    """A random model never ends its answers by itself."""
    lenient = GuardsConfig(
        window=2, max_truncated_share=1, max_all_wrong_share=1, max_entropy=20, probe_every=2
    )
    config = make_run(model_path, data, guards=lenient, checkpoint_every=1)
    config = config.model_copy(update={"probe_path": str(data / "questions.parquet")})
    unbroken = RunDir.create(tmp_path / "unbroken", config)
    rgrpo.train(unbroken, config)
    strict = lenient.model_copy(update={"max_truncated_share": 0.5})
    paused = config.model_copy(update={"rgrpo": config.rgrpo.model_copy(update={"guards": strict})})
    run = RunDir.create(tmp_path / "run", paused)
    with pytest.raises(GuardError, match=r"Step 2: most trajectories never end.*max_trunc") as caught:
        rgrpo.train(run, paused)
    assert caught.value.checkpoint == "checkpoints/step-1"
    assert "is checkpoints/step-1; none is left from before these 2 steps" in str(caught.value)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-1"]
    assert not (run.path / "model").exists()
    rgrpo.train(RunDir.create(run.path, config, may_change=True), config)
    assert_equal(weights(run.path / "model"), weights(unbroken.path / "model"), tolerance=0)
    probed = {line["step"]: line for line in unbroken.metrics() if "rgrpo/probe/crop_gain" in line}
    assert set(probed) == {1, 3}  # of the steps that began with policy version 0 and 2
    assert all(
        line["rgrpo/probe/crop_gain"] == line["rgrpo/probe/accuracy"] - line["rgrpo/probe/accuracy_blank"]
        for line in probed.values()
    )
    for step, line in probed.items():
        rows = pq.read_table(unbroken.path / "probes" / f"probe-{step - 1}.parquet").to_pylist()
        for source, name in (("original", "accuracy"), ("blank", "accuracy_blank")):
            side = [row["is_correct"] for row in rows if row["crop_source"] == source]
            assert len(side) == 8
            assert sum(side) / 8 == line[f"rgrpo/probe/{name}"]
            assert {row["step"] for row in rows} == {step - 1}


def test_a_probe_takes_questions_of_all_kinds_from_a_sorted_file(model_path, data):
    asked = sorted(
        (replace(one, kind=kind) for one, kind in zip(questions(8), "ab" * 4, strict=True)),
        key=lambda one: one.kind,
    )
    config = make_run(model_path, data, guards=GuardsConfig(probe_questions=4))
    chosen = rgrpo._some(asked, config)
    assert len({one.id for one in chosen}) == 4
    assert {one.kind for one in chosen} == {"a", "b"}
    assert rgrpo._some(asked, config) == chosen
    assert rgrpo._some([], config) == []
    assert len(rgrpo._some(asked[:2], config)) == 2


def test_the_last_good_checkpoint_is_from_before_all_that_the_guard_looked_at(
    tmp_path, model_path, data, monkeypatch
):
    """A mean over two steps speaks in the fourth: the third is as bad."""
    falls = iter([1.0, 1.0, 0.0, 0.0])
    metrics = rgrpo.Training._step
    monkeypatch.setattr(
        rgrpo.Training,
        "_step",
        lambda self, step: {**metrics(self, step), "rgrpo/crops_per_trajectory": next(falls)},
    )
    watched = GuardsConfig(
        window=2, max_truncated_share=1, max_all_wrong_share=1, max_entropy=20, probe_every=0
    )
    config = make_run(model_path, data, guards=watched, checkpoint_every=1, keep_checkpoints=3)
    run = RunDir.create(tmp_path / "run", config)
    with pytest.raises(GuardError, match=r"Step 4: the policy has stopped to look") as caught:
        rgrpo.train(run, config)
    assert caught.value.checkpoint == "checkpoints/step-2"
    assert "The last good checkpoint is checkpoints/step-2." in str(caught.value)


def test_rollouts_on_which_engine_and_trainer_disagree_are_kept(tmp_path, model_path, data):
    config = make_run(model_path, data, num_steps=1, max_mismatch_kl=1e-30)
    run = RunDir.create(tmp_path / "run", config)
    with pytest.raises(GuardError, match="on one trajectory of rollouts/"):
        rgrpo.train(run, config)
    assert read_rollouts(rollouts_path(run.path, 0))


def test_a_batch_without_spread_trains_nothing(tmp_path, model_path, data):
    nothing = RewardConfig(accuracy=0, format=0, validity=0, length_cap=0)
    config = make_run(model_path, data, num_steps=1, reward=nothing)
    run = RunDir.create(tmp_path / "run", config)
    result = rgrpo.train(run, config)
    assert (result.status, "None of 1 steps had anything to train on" in result.reason) == ("done", True)
    (line,) = [line for line in run.metrics() if line["step"] == 1]
    assert line["rgrpo/zero_variance_share"] == 1.0
    assert line["rgrpo/updated"] == 0.0
    # Engine and trainer are compared all the same: nothing else would see that they part.
    assert 0 <= line["rgrpo/mismatch_kl"] < 1e-6
    assert_equal(weights(run.path / "model"), weights(model_path), tolerance=0)
    with pytest.raises(GuardError, match="Engine and trainer disagree"):
        rgrpo.train(
            RunDir.create(tmp_path / "parted", config),
            make_run(model_path, data, num_steps=1, reward=nothing, max_mismatch_kl=1e-30),
        )


def test_rollouts_that_cannot_be_trained_on_are_kept_and_end_the_run(tmp_path, model_path, data, monkeypatch):
    encode = Encoder.encode

    def broken(self, trajectory):
        if trajectory.spans:
            raise EncodingError("The engine sampled the banned tokens [5].")
        return encode(self, trajectory)

    config = make_run(model_path, data, num_steps=1)
    run = RunDir.create(tmp_path / "run", config)
    monkeypatch.setattr(Encoder, "encode", broken)
    with pytest.raises(EncodingError, match=r"cannot be trained on\. Nothing was trained\. The first: The"):
        rgrpo.train(run, config)
    kept = read_rollouts(rollouts_path(run.path, 0))
    assert kept
    assert all(one.token_ids is None and not one.is_trained for one in kept)


def test_beta_loads_the_starting_model_once_and_none_without(tmp_path, model_path, data, monkeypatch):
    loaded = []
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained
    monkeypatch.setattr(
        Qwen2_5_VLForConditionalGeneration,
        "from_pretrained",
        lambda path, **settings: (loaded.append(path), load(path, **settings))[1],
    )
    lines = {}
    # Unlike rewards at the start, and a policy that moves far: the penalty has something to hold back.
    for beta in (0.0, 1.0):
        objective = ObjectiveConfig(aggregation="token-mean", beta=beta)
        config = make_run(model_path, data, num_steps=3, learning_rate=0.01, objective=objective)
        run = RunDir.create(tmp_path / f"beta-{beta}", config)
        loaded.clear()
        rgrpo.train(run, config)
        assert len(loaded) == (2 if beta else 1)
        lines[beta] = [line for line in run.metrics() if line.get("rgrpo/updated")]
    assert all("rgrpo/reference_kl" not in line for line in lines[0.0])
    first, second, third = (line["rgrpo/reference_kl"] for line in lines[1.0])
    assert first == 0  # the policy is the reference
    assert second > 1e-4
    assert third > 1e-4


def test_equal_rewards_are_trained_on_where_a_reference_pulls(tmp_path, model_path, other_model_path, data):
    # Every reward is 0: without beta nothing would be trained (test_a_batch_without_spread_trains_nothing).
    nothing = RewardConfig(accuracy=0, format=0, validity=0, length_cap=0)
    objective = ObjectiveConfig(aggregation="token-mean", beta=1.0)
    config = make_run(model_path, data, num_steps=1, reward=nothing, objective=objective)
    run = RunDir.create(tmp_path / "run", config)
    policy = load_policy(other_model_path)  # it has moved away from the starting model
    engine = distributed.initialise(policy, config.rgrpo)
    actors = Actors(
        engine,
        Colocated(TransformersEngine(policy, config.engine)),
        questions(8),
        held_out=[],
        reference=load_reference(model_path, policy, dtype="float32"),
    )
    training = rgrpo.Training(run, config, actors)
    training.run_to_the_end(Progress())
    (line,) = [line for line in run.metrics() if line["step"] == 1]
    assert line["rgrpo/zero_variance_share"] == 1.0
    assert line["rgrpo/updated"] == 1.0
    assert line["rgrpo/reference_kl"] > 0.01
    assert line["rgrpo/gradient_norm"] > 1e-3
    assert line["rgrpo/trained_tokens"] > 0


def test_two_steps_of_each_stage_on_two_ranks_with_vllm(tmp_path, data):
    preset = load_preset("tiny")
    fine_tuning = RunDir.create(
        tmp_path / "sft",
        SFTRun(
            model_path="embedded",
            records_path=str(data / "records.parquet"),
            look=preset.look,
            sft=preset.sft.model_copy(update={"num_epochs": 1, "batch_size": 4, "num_ranks": 2}),
            freeze_vision=True,
            seed=0,
        ),
    )
    launch("models.sft.train", fine_tuning, num_ranks=2)
    assert len([line for line in fine_tuning.metrics() if "sft/loss" in line]) == 2
    changes = {"num_steps": 2, "questions_per_step": 4, "num_ranks": 2}
    reinforced = RunDir.create(
        tmp_path / "rgrpo",
        RGRPORun(
            model_path=str(fine_tuning.path / "model"),
            questions_path=str(data / "questions.parquet"),
            look=preset.look,
            rgrpo=preset.rgrpo.model_copy(update=changes),
            engine=preset.engine,
            freeze_vision=True,
            seed=0,
        ),
    )
    launch("models.rgrpo.train", reinforced, num_ranks=2)
    steps = [line for line in reinforced.metrics() if "rgrpo/reward" in line]
    assert len(steps) == 2
    # The second step's rollouts come from the updated weights: the engine followed.
    assert all(line["rgrpo/mismatch_kl"] < 1e-6 for line in steps)
    assert steps[0]["rgrpo/updated"] == 1.0
    kept = read_transcripts(reinforced.path / "rollouts")
    assert len(kept) == 2 * 4 * preset.rgrpo.group_size
    before, after = weights(fine_tuning.path / "model"), weights(reinforced.path / "model")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if not name.startswith("visual.") and "model.visual." not in name
    }


def launch(module, run, *, num_ranks):
    """Run a stage as the pipeline does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *launcher, "-m", module, str(run.path)]
    subprocess.run(command, check=True, timeout=500, cwd=ROOT)
    assert run.result().status == "done"
    assert (run.path / run.result().artifacts["model"] / "config.json").is_file()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_compute_the_gradient_of_one(tmp_path, model_path, zero_stage):
    script = ROOT / "tests" / "gradient_of_ranks.py"
    for num_ranks in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        arguments = [str(script), str(model_path), str(zero_stage), str(tmp_path / f"{num_ranks}.pt")]
        subprocess.run([sys.executable, *launcher, *arguments], check=True, timeout=300)
    alone, together = (torch.load(tmp_path / f"{number}.pt") for number in (1, 2))
    assert alone["gradients"].keys() == together["gradients"].keys()
    for batch, expected in alone["gradients"].items():
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert largest > 1e-3
        assert_equal(together["gradients"][batch], expected, tolerance=1e-5 * max(1.0, largest))
    for objective, metrics in alone["metrics"].items():
        assert together["metrics"][objective] == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        # No engine sampled these tokens, as if it had been sure of each: the ratios are far from equal.
        assert 0 < metrics["rgrpo/engine_ratio"] < 0.5
        assert metrics["rgrpo/effective_share"] < 0.9
    for found in (alone["gradients"], together["gradients"]):
        assert_equal(found["sft-recomputed"], found["sft"], tolerance=0)
        assert_equal(found["sft-chunked"], found["sft"])
        assert_equal(found["token-mean-beta-chunked"], found["token-mean-beta"])
