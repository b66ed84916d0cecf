"""Engines in processes of their own: what they sample, how weights reach them, and how they end."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from models import distributed
from models.config import EngineConfig, GuardsConfig
from models.errors import EngineError
from models.policy import load_policy
from models.records import write_questions
from models.rgrpo import train as rgrpo
from models.rgrpo.dedicated import DedicatedSampler
from models.rgrpo.engine_process import Opening
from models.rgrpo.rollouts import read_rollouts, rollouts_path, steps_kept
from models.rgrpo.update import score_again
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import SampledSpan
from tests.killed import files_of, last_step, metrics_of, rollouts_of, stage
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, VLLM, questions, rgrpo_config, rgrpo_run

pytestmark = pytest.mark.integration

RGRPO = "models.rgrpo.train"
TRAINING = rgrpo_config(
    num_steps=3,
    group_size=4,
    checkpoint_every=1,
    num_threads=1,
    placement="dedicated",
    guards=GuardsConfig(probe_every=2, probe_questions=2),
)
REFERENCE = VLLM.model_copy(update={"kind": "transformers"})


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.parquet"
    write_questions(path, questions(8))
    return path


def make_run(
    folder: Path,
    model_path: Path,
    data: Path,
    engine: EngineConfig,
    *,
    freeze_vision: bool = True,
    **changes: object,
) -> RunDir:
    training = TRAINING.model_copy(update=changes)
    config = rgrpo_run(model_path, data, training, engine=engine, is_probed=True, freeze_vision=freeze_vision)
    return RunDir.create(folder, config)


def engines_of(pid: int) -> list[psutil.Process]:
    """The engines among the descendants of a process."""
    found = psutil.Process(pid).children(recursive=True)
    return [one for one in found if "multiprocessing.spawn" in " ".join(one.cmdline())]


def tokens_of(run: RunDir) -> list[tuple[int, ...]]:
    """The ids of every sampled span, of every step's rollouts."""
    rollouts = [one for step in steps_kept(run.path) for one in read_rollouts(rollouts_path(run.path, step))]
    spans = [span for one in rollouts for span in one.transcript.spans]
    return [span.token_ids or () for span in spans if isinstance(span, SampledSpan)]


def in_both_placements(folder: Path, model_path: Path, data: Path, **changes: Any) -> tuple[RunDir, RunDir]:
    """The same training, with vLLM in a process of its own and beside the policy."""
    runs = []
    for placement in ("dedicated", "colocate"):
        run = make_run(folder / placement, model_path, data, VLLM, placement=placement, **changes)
        rgrpo.train(run, RGRPORun.model_validate_json(run.config_text()))
        runs.append(run)
    assert engines_of(os.getpid()) == []
    return runs[0], runs[1]


def test_vllm_of_its_own_samples_the_same_tokens_as_beside_the_policy(
    tmp_path: Path, tied: Path, data: Path
) -> None:
    """Beside a policy with a frozen tower it gets features from there: the same but for the last bits."""
    apart, beside = in_both_placements(tmp_path, tied, data)
    assert tokens_of(apart) == tokens_of(beside)
    weights = [load_file(run.path / "model" / "model.safetensors") for run in (apart, beside)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_vllm_of_its_own_trains_to_the_same_bits_as_beside_the_policy(
    tmp_path: Path, tied: Path, data: Path
) -> None:
    apart, beside = in_both_placements(tmp_path, tied, data, freeze_vision=False)
    assert rollouts_of(apart) == rollouts_of(beside)
    assert files_of(apart.path / "model") == files_of(beside.path / "model")
    assert metrics_of(apart) == metrics_of(beside)
    steps = [line for line in metrics_of(apart).values() if "rgrpo/mismatch_max" in line]
    assert len(steps) == 3
    # Weights that have moved reach a tied head too.
    assert max(line["rgrpo/mismatch_max"] for line in steps) < 1e-4
    assert min(line["rgrpo/gradient_norm"] for line in steps) > 0


@contextmanager
def sampler(
    model_path: Path, engine: EngineConfig, *, timeout_seconds: float = 400.0
) -> Iterator[DedicatedSampler]:
    opening = Opening(model_path, engine, LOOK, 0, 0, shares_memory=True)
    made = DedicatedSampler(
        opening, trainer=torch.device("cpu"), device=None, timeout_seconds=timeout_seconds
    )
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("engine", [VLLM, REFERENCE], ids=["vllm", "transformers"])
def test_all_weights_reach_an_untied_engine_and_leave_nothing_of_the_old(
    untied: Path, engine: EngineConfig
) -> None:
    distributed.start(num_threads=1)
    policy = load_policy(untied, freeze_vision=False)
    trained = distributed.initialise(policy, TRAINING)
    asked = questions(2)

    def mismatch() -> float:
        rollouts = sampled.roll_out(asked, look=LOOK, num_samples=2, temperature=1.0, seed=1)
        spans = [span for one in rollouts for span in one.spans if isinstance(span, SampledSpan)]
        assert {span.policy_version for span in spans} == {sampled.version}
        encoded = [policy.encoder.encode(one) for one in rollouts]
        again = score_again(trained, encoded, TRAINING)
        return max(
            float(np.abs(new - one.engine_logprobs[one.sampled]).max())
            for one, new in zip(encoded, again, strict=True)
        )

    with sampler(untied, engine) as sampled:
        assert mismatch() < 5e-5
        for version, part in ((1, policy.parameters()), (2, policy.tower.parameters())):
            generator = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for parameter in part:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            assert mismatch() > 1e-2, "the update is too small to see"
            sampled.update_weights(policy.weights(), version=version)
            assert sampled.version == version
            assert mismatch() < 5e-5


def test_an_engine_that_does_not_answer_in_time_is_named_and_ended(untied: Path) -> None:
    said = r"has not answered for 0\.2 seconds.*the last checkpoint"
    with sampler(untied, REFERENCE, timeout_seconds=0.2) as sampled, pytest.raises(EngineError, match=said):
        sampled.roll_out(questions(1), look=LOOK)
    assert engines_of(os.getpid()) == []


def test_an_engine_that_does_not_start_says_why(untied: Path) -> None:
    crowded = VLLM.model_copy(update={"max_model_len": 10**6})
    said = "In the engine's process: EngineError: vLLM does not start"
    with sampler(untied, crowded) as sampled, pytest.raises(EngineError, match=said):
        sampled.roll_out(questions(1), look=LOOK)


def test_two_ranks_whose_policy_is_in_slices_have_an_engine_each(
    tmp_path: Path, tied: Path, data: Path
) -> None:
    run = make_run(tmp_path / "run", tied, data, REFERENCE, num_ranks=2, zero_stage=3)
    with stage(RGRPO, run, num_ranks=2) as training:
        training.wait_until(lambda: last_step(run) >= 0)
        assert len(engines_of(training.process.pid)) == 2
        training.finish()
    steps = metrics_of(run)
    assert all(steps[step]["rgrpo/mismatch_max"] < 1e-4 for step in (1, 2, 3))
    rows = rollouts_of(run)
    assert len(rows) == 3 * 2 * 4
    assert all(
        span["policy_version"] == row["step"]
        for row in rows
        for span in row["spans"]
        if span["kind"] == "sampled"
    )


def test_an_engine_that_is_killed_ends_the_run_and_not_its_checkpoints(
    tmp_path: Path, tied: Path, data: Path
) -> None:
    run = make_run(tmp_path / "run", tied, data, REFERENCE, num_steps=40)
    with stage(RGRPO, run, num_ranks=1) as training:
        training.wait_until(lambda: last_step(run) >= 2)
        (engine,) = engines_of(training.process.pid)
        engine.kill()
        assert training.process.wait(60) == 1
    result = run.result()
    assert result.status == "failed"
    assert "The engine's process ended with exit code -9" in result.reason
    assert "from the last checkpoint" in result.reason
    done = last_step(run)
    assert run.checkpoints()[-1].name == f"step-{done}"
    with stage(RGRPO, run, num_ranks=1) as again:
        again.wait_until(lambda: last_step(run) > done)
        (engine,) = engines_of(again.process.pid)
        # The trainer alone, which then says nothing to its engine.
        again.process.kill()
        deadline = time.monotonic() + 30
        while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the engine outlives its trainer"
            time.sleep(0.05)
