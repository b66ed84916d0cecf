"""SFT and R-GRPO with DeepSpeed: a random tiny Qwen2.5-VL in this process, several ranks under torchrun."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import load_file

from models import distributed
from models.config import (
    EngineConfig,
    GuardsConfig,
    ObjectiveConfig,
    PreflightConfig,
    RewardConfig,
    RGRPOConfig,
    SFTConfig,
)
from models.errors import GuardError, RunDirError, TrainingError
from models.packing import pack
from models.policy import Policy, load_policy
from models.presets import load_preset
from models.records import write_questions, write_records
from models.rgrpo import train as rgrpo
from models.rgrpo import update
from models.rgrpo.objective import Totals
from models.rgrpo.update import Sample
from models.run_config import RGRPORun, SFTRun
from models.rundir import RunDir
from models.sft import step as sft_step
from models.sft import train as sft
from models.transcripts import read_transcripts
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, questions, records

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
RGRPO = RGRPOConfig(
    num_steps=4,
    questions_per_step=2,
    group_size=3,
    learning_rate=1e-3,
    warmup_steps=0,
    tokens_per_micro_batch=1024,
    precision="float32",
    checkpoint_every=2,
    objective=ObjectiveConfig(aggregation="seq-mean-token-mean"),
    preflight=PreflightConfig(enabled=False),
)


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    distributed.start(num_threads=1)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "records.parquet", records(8))
    write_questions(folder / "questions.parquet", questions(8))
    return folder


def sft_run(model_path, data, **changes):
    return SFTRun(
        model_path=str(model_path),
        records_path=str(data / "records.parquet"),
        validation_path=str(data / "records.parquet"),
        look=LOOK,
        sft=SFT.model_copy(update=changes),
        freeze_vision=True,
        seed=0,
    )


def rgrpo_run(model_path, data, **changes):
    return RGRPORun(
        model_path=str(model_path),
        questions_path=str(data / "questions.parquet"),
        look=LOOK,
        rgrpo=RGRPO.model_copy(update=changes),
        engine=EngineConfig(kind="transformers", dtype="float32", max_model_len=512),
        freeze_vision=True,
        seed=0,
    )


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


@pytest.mark.parametrize(
    "aggregation", ["paper-eq2", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]
)
def test_rgrpo_gradient_does_not_depend_on_how_the_batch_is_cut(model_path, aggregation):
    found = []
    for max_tokens in (1024, 128):
        policy = load_policy(model_path)
        engine = distributed.initialise(policy, RGRPO)
        encoded = encoded_records(policy)
        samples = [
            Sample(str(i), 0, one, a)
            for i, (one, a) in enumerate(zip(encoded, (1.0, -1.0, 0.5, -0.5), strict=True))
        ]
        metrics = update.accumulate_gradient(
            engine,
            samples,
            spare=encoded[0],
            totals=Totals(2, 4, sum(one.num_sampled for one in encoded), 24),
            # No engine sampled these records: there is nothing for the trainer to agree with.
            config=RGRPO.model_copy(
                update={
                    "tokens_per_micro_batch": max_tokens,
                    "max_mismatch_kl": 1e9,
                    "objective": ObjectiveConfig(aggregation=aggregation),
                }
            ),
        )
        found.append((metrics, gradients(engine)))
    assert found[0][0]["rgrpo/loss"] == pytest.approx(found[1][0]["rgrpo/loss"], abs=1e-5)
    assert_equal(found[1][1], found[0][1])
    assert max(gradient.abs().max() for gradient in found[0][1].values()) > 1e-3


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
    config = sft_run(model_path, data)  # 8 records in batches of 4, 2 epochs: 4 steps
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    result = sft.train(RunDir.create(unbroken, config), config)
    run = RunDir.create(broken, config)
    shutil.copytree(unbroken / "checkpoints" / "step-2", broken / "checkpoints" / "step-2")
    sft.train(run, config)
    assert_equal(weights(broken / "model"), weights(unbroken / "model"), tolerance=1e-6)
    assert [line["step"] for line in run.metrics()] == [2, 3, 4]
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
    config = sft_run(model_path, data, **changes, **stop)
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


def test_accuracy_is_measured_and_disturbs_nothing(tmp_path, model_path, data):
    plain = sft_run(model_path, data)
    asked = sft_run(model_path, data, accuracy_questions=4)
    sft.train(RunDir.create(tmp_path / "plain", plain), plain)
    run = RunDir.create(tmp_path / "asked", asked)
    sft.train(run, asked)
    assert_equal(weights(run.path / "model"), weights(tmp_path / "plain" / "model"), tolerance=0)
    found = [line for line in run.metrics() if "sft/accuracy" in line]
    assert [line["step"] for line in found] == [0, 2, 4]
    assert all(line["sft/accuracy"] == line["sft/accuracy/read"] for line in found)
    assert all(line["sft/unscored_share"] == 0 for line in found)


def test_a_second_run_finds_every_feature_of_the_first(tmp_path, model_path, data, monkeypatch):
    calls = []
    look_at = Policy._look_at
    monkeypatch.setattr(Policy, "_look_at", lambda *args: calls.append(1) or look_at(*args))
    config = sft_run(model_path, data).model_copy(update={"features_path": str(tmp_path / "features")})
    counts = []
    for name in ("first", "second"):
        sft.train(RunDir.create(tmp_path / name, config), config)
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1]
    assert_equal(weights(tmp_path / "second" / "model"), weights(tmp_path / "first" / "model"), tolerance=0)


def test_more_sft_lasts_its_seconds_and_ends_at_the_lowest_rate(tmp_path, model_path, data):
    config = sft_run(model_path, data, max_seconds=3.0, checkpoint_every=1000)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    lines = [line for line in run.metrics() if "sft/learning_rate" in line]
    assert len(lines) > 4  # more steps than the two epochs have
    assert 3.0 <= lines[-1]["progress/done"] < 6.0
    assert lines[-1]["sft/learning_rate"] < 0.3 * SFT.learning_rate


def test_too_many_long_records_stop_the_run(tmp_path, model_path, data):
    config = sft_run(model_path, data, max_tokens=64)
    with pytest.raises(TrainingError, match=r"8 of 8 records .* sft.max_tokens 64"):
        sft.train(RunDir.create(tmp_path / "run", config), config)


def test_a_long_record_is_left_out_whole_counted_and_named(tmp_path, model_path, data, caplog):
    encoder = load_policy(model_path).encoder
    lengths = {record.question.id: len(encoder.encode_record(record, LOOK)) for record in records(8)}
    limit = max(lengths.values()) - 1
    long = [name for name, length in lengths.items() if length > limit]
    config = sft_run(model_path, data, max_tokens=limit, max_dropped=1.0, num_epochs=1)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    assert next(run.metrics())["sft/dropped"] == len(long) > 0
    assert all(f"{name} ({limit + 1} tokens)" in caplog.text for name in long)


def test_rgrpo_resumes_as_if_it_had_never_stopped(tmp_path, model_path, data):
    config = rgrpo_run(model_path, data)
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
    config = rgrpo_run(model_path, data, num_steps=2)
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


def test_a_guard_pauses_the_run_and_it_goes_on_under_another_limit(tmp_path, model_path, data):
    """A random model never ends its answers by itself."""
    lenient = GuardsConfig(
        window=2, max_truncated_share=1, max_all_wrong_share=1, max_entropy=20, probe_every=2
    )
    config = rgrpo_run(model_path, data, guards=lenient, checkpoint_every=1)
    config = config.model_copy(update={"probe_path": str(data / "questions.parquet")})
    unbroken = RunDir.create(tmp_path / "unbroken", config)
    rgrpo.train(unbroken, config)
    strict = lenient.model_copy(update={"max_truncated_share": 0.5})
    paused = config.model_copy(update={"rgrpo": config.rgrpo.model_copy(update={"guards": strict})})
    run = RunDir.create(tmp_path / "run", paused)
    with pytest.raises(GuardError, match=r"Step 2: most trajectories never end.*max_trunc") as caught:
        rgrpo.train(run, paused)
    assert caught.value.checkpoint == "checkpoints/step-1"
    assert "The last good checkpoint is checkpoints/step-1." in str(caught.value)
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


def test_a_batch_without_spread_trains_nothing(tmp_path, model_path, data):
    nothing = RewardConfig(accuracy=0, format=0, validity=0, length_cap=0)
    config = rgrpo_run(model_path, data, num_steps=1, reward=nothing)
    run = RunDir.create(tmp_path / "run", config)
    rgrpo.train(run, config)
    (line,) = [line for line in run.metrics() if line["step"] == 1]
    assert line["rgrpo/zero_variance_share"] == 1.0
    assert line["rgrpo/updated"] == 0.0
    assert_equal(weights(run.path / "model"), weights(model_path), tolerance=0)


def test_a_checkpoint_of_another_number_of_ranks_is_refused(tmp_path, model_path, data):
    config = sft_run(model_path, data)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    about = run.path / "checkpoints" / "step-4" / "progress.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"num_ranks": 2}))
    with pytest.raises(RunDirError, match="written by 2 ranks, this run has 1"):
        sft.train(run, config)


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
    for stage in ("sft", "rgrpo"):
        assert alone[stage].keys() == together[stage].keys()
        assert_equal(together[stage], alone[stage])
    assert max(gradient.abs().max() for gradient in alone["rgrpo"].values()) > 1e-3
