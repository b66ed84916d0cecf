"""What the optimiser does with a gradient: clipping, the schedule's rate, float32 master weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from models import distributed, training_state
from models.config import GuardsConfig, SFTConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.policy import Policy, collate, load_policy, load_to_train
from models.records import write_questions, write_records
from models.rgrpo import train as rgrpo
from models.rundir import RunDir
from models.sft import train as sft
from models.sft.step import sft_step
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, questions, records, rgrpo_config, rgrpo_run, sft_run

pytestmark = pytest.mark.integration

STAGES = [("float32", 0), ("float32", 3), ("bfloat16", 0), ("bfloat16", 2)]
BETA_1 = 0.9


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    distributed.start(num_threads=1)
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


def encoded_records(policy: Policy) -> list[Encoded]:
    return [policy.encoder.encode_record(record, LOOK) for record in records(2)]


def engine_of(model_path: Path, **changes: object) -> DeepSpeedEngine:
    return distributed.initialise(load_policy(model_path), SFTConfig.model_validate(changes))


def take_step(engine: DeepSpeedEngine, *, learning_rate: float) -> dict[str, float]:
    return sft_step(
        engine, encoded_records(engine.module), ["a", "b"], learning_rate=learning_rate, max_tokens=512
    )


@pytest.fixture(scope="module")
def gradient(model_path: Path) -> dict[str, torch.Tensor]:
    """That of the mean loss per token, by plain autograd."""
    policy = load_policy(model_path)
    encoded = encoded_records(policy)
    batch = collate(encoded, policy)
    (-policy(batch).sum() / sum(one.num_sampled for one in encoded)).backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("max_grad_norm", [0.5, 1000.0])
@pytest.mark.parametrize(("precision", "zero_stage"), STAGES)
def test_the_norm_before_clipping_is_logged_and_the_clipped_gradient_is_applied(
    model_path: Path,
    gradient: dict[str, torch.Tensor],
    precision: str,
    zero_stage: int,
    max_grad_norm: float,
) -> None:
    norm = float(torch.stack([part.norm() for part in gradient.values()]).norm())
    assert 0.5 < norm < 1000, "nothing is clipped by the one bound, all by the other"
    rel = 1e-4 if precision == "float32" else 0.03
    engine = engine_of(
        model_path,
        precision=precision,
        zero_stage=zero_stage,
        max_grad_norm=max_grad_norm,
        betas=(BETA_1, 0.95),
    )
    assert take_step(engine, learning_rate=1e-3)["sft/gradient_norm"] == pytest.approx(norm, rel=rel)
    # After one step the first moment is (1 - beta_1) times the gradient that AdamW was given.
    state = dict(training_state.whole_state(engine))
    factor = min(1.0, max_grad_norm / norm)
    for name, expected in gradient.items():
        given = state[f"{name}@exp_avg"] / (1 - BETA_1)
        off = float((given.view(expected.shape) - factor * expected).norm())
        assert off <= rel * factor * norm, name


@contextmanager
def rates_applied() -> Iterator[list[float]]:
    """The rate of every step that a torch optimiser takes; DeepSpeed's step on nothing, rate 0, is none."""
    seen: list[float] = []

    def note(optimizer: Optimizer, *_: object) -> None:
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        seen.extend([rate] if rate else [])

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def by_step(rates: list[float], num_steps: int) -> list[float]:
    """One rate per step of training: ZeRO has the optimiser step once for each of its groups."""
    parts, rest = divmod(len(rates), num_steps)
    assert parts
    assert not rest
    assert rates == [rate for rate in rates[::parts] for _ in range(parts)]
    return rates[::parts]


@pytest.mark.parametrize(("precision", "zero_stage"), STAGES)
def test_the_rate_rises_and_follows_a_cosine_in_the_optimiser(
    tmp_path: Path, model_path: Path, precision: str, zero_stage: int
) -> None:
    write_records(tmp_path / "records.parquet", records(8))
    settings = SFTConfig.model_validate(
        {
            "num_epochs": 4,
            "batch_size": 4,
            "tokens_per_micro_batch": 1024,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.25,
            "min_lr_ratio": 0.1,
            "precision": precision,
            "zero_stage": zero_stage,
            "checkpoint_every": 1000,
        }
    )
    config = sft_run(model_path, tmp_path / "records.parquet", settings)
    run = RunDir.create(tmp_path / "run", config)
    with rates_applied() as applied:
        sft.train(run, config)
    # Eight steps, two of warm-up: 1/2, 1, then 0.1 + 0.9 (1 + cos(pi n / 6)) / 2 for n = 1 to 6.
    shape = [0.5, 1.0, 0.93971, 0.775, 0.55, 0.325, 0.16029, 0.1]
    found = by_step(applied, len(shape))
    assert found == pytest.approx([1e-3 * share for share in shape], rel=1e-4)
    logged = [line["sft/learning_rate"] for line in run.metrics() if "sft/learning_rate" in line]
    assert logged == found


def test_the_rate_of_rgrpo_rises_in_the_optimiser_and_stays(tmp_path: Path, model_path: Path) -> None:
    write_questions(tmp_path / "questions.parquet", questions(4))
    training = rgrpo_config(
        warmup_steps=2, min_lr_ratio=1.0, checkpoint_every=1000, guards=GuardsConfig(enabled=False)
    )
    config = rgrpo_run(model_path, tmp_path / "questions.parquet", training)
    run = RunDir.create(tmp_path / "run", config)
    with rates_applied() as applied:
        rgrpo.train(run, config)
    logged = {
        line["step"]: line["rgrpo/learning_rate"] for line in run.metrics() if line.get("rgrpo/updated")
    }
    assert set(logged) >= {1, 2, 4}, "a step had nothing to train on: the test is void"
    expected = {1: 5e-4, 2: 1e-3, 3: 1e-3, 4: 1e-3}
    assert logged == pytest.approx({step: expected[step] for step in logged})
    assert by_step(applied, len(logged)) == list(logged.values())


@pytest.mark.parametrize("zero_stage", range(4))
def test_master_weights_do_not_depend_on_who_casts_the_model(model_path: Path, zero_stage: int) -> None:
    config = SFTConfig(precision="bfloat16", zero_stage=zero_stage)
    by_deepspeed, by_the_loader = (
        dict(training_state.whole_state(distributed.initialise(policy, config)))
        for policy in (load_policy(model_path), load_to_train(model_path, config))
    )
    assert all(torch.equal(by_the_loader[name], tensor) for name, tensor in by_deepspeed.items())


@pytest.mark.parametrize("zero_stage", range(4))
def test_steps_too_small_for_bfloat16_add_up_in_the_master_weights(model_path: Path, zero_stage: int) -> None:
    """Between 1/8 and 1/4 neighbours in bfloat16 are 1/1024 apart: a step of 5e-5 rounds to none."""
    engine = engine_of(model_path, precision="bfloat16", zero_stage=zero_stage, weight_decay=0.0)
    names = [name for name, parameter in engine.module.named_parameters() if "mlp" in name]
    begun = whole_weights(engine, names)
    assert {weights.dtype for weights in begun.values()} == {torch.bfloat16}
    chosen = {name: (weights.abs() > 0.125) & (weights.abs() < 0.25) for name, weights in begun.items()}

    def share_moved() -> float:
        moved = [
            (tensor != begun[name])[chosen[name]] for name, tensor in whole_weights(engine, names).items()
        ]
        return float(torch.cat(moved).float().mean())

    take_step(engine, learning_rate=5e-5)
    assert share_moved() == 0
    for _ in range(15):
        take_step(engine, learning_rate=5e-5)
    assert share_moved() > 0.5
    state = dict(training_state.whole_state(engine))
    for name, weights in whole_weights(engine, names).items():
        assert state[name].dtype == torch.float32
        assert torch.equal(weights, state[name].view(weights.shape).bfloat16())
        assert not torch.equal(weights.float(), state[name].view(weights.shape))


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_gradients_of_many_micro_batches_add_up_in_float32(model_path: Path, zero_stage: int) -> None:
    """In bfloat16 a 512th is less than half of the last place: 1 and 63 of them are 1."""
    alone, together = (
        gradient_of(model_path, zero_stage, shares) for shares in ([1.0], [1.0, *[1 / 512] * 63])
    )
    for name, gradient in together.items():
        assert gradient.dtype == torch.float32
        assert torch.allclose(gradient, alone[name] * (1 + 63 / 512), rtol=1e-5, atol=0), name


def gradient_of(model_path: Path, zero_stage: int, shares: list[float]) -> dict[str, torch.Tensor]:
    """Of the same micro-batch so many times, as it weighs each time."""
    engine = engine_of(model_path, precision="bfloat16", zero_stage=zero_stage)
    batch = collate(encoded_records(engine.module), engine.module)
    for number, share in enumerate(shares, start=1):
        distributed.accumulate(engine, engine(batch).sum() * share, is_last=number == len(shares))
    return {
        name: safe_get_full_grad(parameter).clone() for name, parameter in engine.module.named_parameters()
    }


def whole_weights(engine: DeepSpeedEngine, names: list[str]) -> dict[str, torch.Tensor]:
    """What the model computes with."""
    with distributed.gathered(engine):
        parameters = dict(engine.module.named_parameters())
        return {name: parameters[name].detach().clone() for name in names}
