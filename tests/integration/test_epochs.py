"""What fine-tuning sees, on any number of ranks: each record once in an epoch, each picture once in a run."""

import threading
from collections import Counter
from pathlib import Path

import pytest

from models.config import SFTConfig
from models.encoding import Encoder
from models.policy import load_policy
from models.records import write_records
from models.run_config import SFTRun
from models.rundir import RunDir
from models.sft import samples
from models.sft import train as sft
from tests.killed import stage
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, records, sft_run

pytestmark = pytest.mark.integration

NUM_EPOCHS = 3
NUM_RECORDS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SFTRun:
    """An epoch is a batch of four and one of one."""
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "records.parquet", records(NUM_RECORDS))
    training = SFTConfig(num_epochs=NUM_EPOCHS, batch_size=4, precision="float32", num_threads=1)
    return sft_run(save_random_model(folder / "model", tied=False), folder / "records.parquet", training)


def steps(run: RunDir) -> list[dict[str, float]]:
    return [line for line in run.metrics() if "sft/loss" in line]


def test_an_epoch_takes_every_record_once(
    config: SFTRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[str]] = []
    sft_step = sft.sft_step

    def watched(engine, encoded, ids, **settings):
        taken.append(ids)
        return sft_step(engine, encoded, ids, **settings)

    monkeypatch.setattr(sft, "sft_step", watched)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    assert [len(batch) for batch in taken] == [4, 1] * NUM_EPOCHS
    for epoch in range(NUM_EPOCHS):
        batches = taken[2 * epoch : 2 * epoch + 2]
        assert len({name for batch in batches for name in batch}) == NUM_RECORDS
    assert [line["step"] for line in run.metrics() if "time/pictures_looked_at" in line] == [0, 2, 4, 6]


def test_fewer_records_than_a_batch_are_a_batch(config: SFTRun, tmp_path: Path) -> None:
    wide = config.model_copy(update={"sft": config.sft.model_copy(update={"batch_size": 64})})
    run = RunDir.create(tmp_path / "run", wide)
    sft.train(run, wide)
    assert [line["step"] for line in steps(run)] == [1, 2, 3]


@pytest.mark.parametrize("num_bytes", [0, 150_000], ids=["none is kept", "some are kept"])
def test_samples_that_memory_cannot_hold_are_encoded_once_an_epoch_and_change_nothing(
    config: SFTRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    expected = RunDir.create(tmp_path / "expected", config)
    sft.train(expected, config)
    encoded: Counter[str] = Counter()
    elsewhere: set[str] = set()
    encode_record = Encoder.encode_record

    def counted(self, record, look):
        encoded[record.question.id] += 1
        if threading.current_thread() is not threading.main_thread():
            elsewhere.add(record.question.id)
        return encode_record(self, record, look)

    monkeypatch.setattr(Encoder, "encode_record", counted)
    monkeypatch.setattr(samples, "_KEPT_BYTES", num_bytes)
    monkeypatch.setattr(sft, "LOOK_AHEAD", 1)
    run = RunDir.create(tmp_path / "run", config)
    sft.train(run, config)
    for one, other in zip(steps(expected), steps(run), strict=True):
        assert one["sft/loss"] == other["sft/loss"]
    # Once at the start, to learn its length, and at most once in each epoch.
    assert all(count <= 1 + NUM_EPOCHS for count in encoded.values())
    assert elsewhere
    assert (min(encoded.values()) == 1) == bool(num_bytes)


def test_two_ranks_see_each_picture_once_and_learn_what_one_learns(config: SFTRun, tmp_path: Path) -> None:
    """The second rank has nothing of the last batch of an epoch."""
    runs = []
    for num_ranks in (1, 2):
        training = config.sft.model_copy(update={"num_ranks": num_ranks})
        features = tmp_path / f"features-{num_ranks}"
        made = config.model_copy(update={"sft": training, "features_path": str(features)})
        run = RunDir.create(tmp_path / f"ranks-{num_ranks}", made)
        with stage("models.sft.train", run, num_ranks=num_ranks) as running:
            running.finish()
        runs.append(run)
    alone, together = map(steps, runs)
    for one, both in zip(alone, together, strict=True):
        assert both["sft/sampled_tokens"] == one["sft/sampled_tokens"]
        assert both["sft/loss"] == pytest.approx(one["sft/loss"], rel=1e-5)
        assert both["sft/gradient_norm"] == pytest.approx(one["sft/gradient_norm"], rel=1e-4)
    encoder = load_policy(Path(config.model_path)).encoder
    encoded = [encoder.encode_record(record, LOOK) for record in records(NUM_RECORDS)]
    pictures = Counter(picture.digest for one in encoded for picture in one.pictures)
    for run in runs:
        looked_at = [line.get("time/pictures_looked_at", 0) for line in run.metrics()]
        assert sum(looked_at) == len(pictures)
