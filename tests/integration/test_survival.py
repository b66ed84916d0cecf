"""``kill -9`` at bad moments, then the same command again: bit for bit what an unbroken run comes to.

Real processes of the stages, on one rank and on two, float32, one thread each.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.config import GuardsConfig, SFTConfig
from models.records import write_questions, write_records
from models.run_config import RGRPORun, SFTRun
from models.rundir import RunDir
from tasks.checkpoint_copies import CheckpointCopies
from tests.killed import ROOT, files_of, is_saving, last_step, metrics_of, rollouts_of, stage
from tests.s3_proxy import Proxy
from tests.s3_server import BUCKET
from tests.tiny_models import save_random_model
from tests.training_data import VLLM, questions, records, rgrpo_config, rgrpo_run, sft_run

pytestmark = pytest.mark.integration

SFT = "models.sft.train"
RGRPO = "models.rgrpo.train"
NUM_RGRPO_STEPS = 5


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    # Nine in batches of four: epochs end with one, which leaves a second rank without any, and pictures come
    # again after a restart.
    write_records(folder / "records.parquet", records(9))
    write_questions(folder / "questions.parquet", questions(10))
    return folder


def sft_config(model_path: Path, data: Path, *, num_ranks: int) -> SFTRun:
    path = data / "records.parquet"
    training = SFTConfig(
        num_epochs=6,  # 18 steps
        batch_size=4,
        tokens_per_micro_batch=256,
        learning_rate=1e-3,
        precision="float32",
        checkpoint_every=3,
        num_ranks=num_ranks,
        num_threads=1,
    )
    return sft_run(model_path, path, training, validation_path=path)


def reinforcement(model_path: Path, data: Path, *, num_ranks: int, kind: str) -> RGRPORun:
    training = rgrpo_config(
        num_steps=NUM_RGRPO_STEPS,
        group_size=4,
        num_ranks=num_ranks,
        num_threads=1,
        guards=GuardsConfig(probe_every=2, probe_questions=4),
    )
    engine = VLLM.model_copy(update={"kind": kind, "kv_cache_gib": 1})
    return rgrpo_run(model_path, data / "questions.parquet", training, engine=engine, is_probed=True)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sft_that_was_killed_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, model_path: Path, data: Path, s3_proxy: Proxy, num_ranks: int
) -> None:
    config = sft_config(model_path, data, num_ranks=num_ranks)
    root = f"s3://{BUCKET}/survival/{tmp_path.name}"
    unbroken, broken = (RunDir.create(tmp_path / name, config) for name in ("unbroken", "broken"))
    with (
        stage(SFT, unbroken, num_ranks=num_ranks) as whole,
        stage(SFT, broken, num_ranks=num_ranks) as first,
    ):
        first.kill_when(lambda: bool(broken.checkpoints()) and is_saving(broken))
        whole.finish()
    assert is_saving(broken), "it was not killed while it wrote a checkpoint: the test is void"
    if num_ranks == 1:
        copies = CheckpointCopies(root, broken, keep=2)
        copies.start()
        with stage(SFT, broken, num_ranks=num_ranks) as second:
            second.wait_until(lambda: last_step(broken) >= 8)
            time.sleep(random.uniform(0, 0.1))
            second.kill()
        copies.stop()
        # The machine is lost with all that is on it.
        broken = RunDir.create(tmp_path / "elsewhere" / "broken", config)
        CheckpointCopies(root, broken, keep=2).restore()
    else:
        with stage(SFT, broken, num_ranks=num_ranks) as second:
            second.wait_until(lambda: last_step(broken) >= 8)
            second.kill_launcher()
    assert not (broken.path / "result.json").exists(), "it was not killed before its end: the test is void"
    with stage(SFT, broken, num_ranks=num_ranks) as third:
        third.finish()
    assert "resumed from" in (broken.path / "log.txt").read_text()
    assert files_of(broken.path / "model") == files_of(unbroken.path / "model")
    assert metrics_of(broken) == metrics_of(unbroken)
    assert broken.result().metrics == unbroken.result().metrics
    assert [path.name for path in broken.checkpoints()] == ["step-15", "step-18"]
    if num_ranks == 2:
        goes_on_alone(unbroken, RunDir.create(tmp_path / "alone", sft_config(model_path, data, num_ranks=1)))


def goes_on_alone(of_two: RunDir, alone: RunDir) -> None:
    """One rank takes the last but one checkpoint of two: the same samples in the same order, to rounding."""
    shutil.copytree(of_two.checkpoints()[0], alone.path / "checkpoints" / "step-15")
    with stage(SFT, alone, num_ranks=1) as last:
        last.finish()
    expected, found = metrics_of(of_two), metrics_of(alone)
    for step in (16, 17, 18):
        assert found[step]["sft/sampled_tokens"] == expected[step]["sft/sampled_tokens"]
        assert found[step]["sft/loss"] == pytest.approx(expected[step]["sft/loss"], rel=1e-5)
    assert len({expected[step]["sft/sampled_tokens"] for step in range(1, 19)}) > 3


@pytest.mark.parametrize(
    ("num_ranks", "kind"),
    [(1, "vllm"), (2, "transformers"), pytest.param(2, "vllm", marks=pytest.mark.slow)],
)
def test_rgrpo_that_was_killed_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, model_path: Path, data: Path, num_ranks: int, kind: str
) -> None:
    config = reinforcement(model_path, data, num_ranks=num_ranks, kind=kind)
    unbroken, broken = (RunDir.create(tmp_path / name, config) for name in ("unbroken", "broken"))
    with (
        stage(RGRPO, unbroken, num_ranks=num_ranks) as whole,
        stage(RGRPO, broken, num_ranks=num_ranks) as first,
    ):
        # What follows the metrics of a step without checkpoint is the next step's rollouts.
        first.kill_when(lambda: last_step(broken) >= 3)
        whole.finish()
    assert last_step(broken) == 3
    assert not (broken.path / "rollouts" / "step-3.parquet").exists()
    with stage(RGRPO, broken, num_ranks=num_ranks) as second:
        second.finish()
    assert "resumed from" in (broken.path / "log.txt").read_text()
    assert sum(line.get("rgrpo/updated", 0) for line in metrics_of(unbroken).values()) >= 3
    assert rollouts_of(broken) == rollouts_of(unbroken)
    assert metrics_of(broken) == metrics_of(unbroken)
    assert files_of(broken.path / "model") == files_of(unbroken.path / "model")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sft", "sft-best", "rgrpo", "rgrpo-ahead"])
def test_a_kill_before_any_operation_on_files_changes_nothing(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "tests.killed_at_every_operation", kind, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
