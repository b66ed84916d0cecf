"""Held-out look-again accuracy during fine-tuning is the same on two ranks, under ZeRO-3, as on one."""

from dataclasses import replace
from pathlib import Path

import pytest

from models import distributed
from models.config import SFTConfig, resolve_model_path
from models.policy import load_policy, save_policy
from models.presets import load_preset
from models.protocol import extract_answer
from models.records import write_questions, write_records
from models.rollout import rollout
from models.run_config import SFTRun
from models.rundir import RunDir
from models.sft import train as sft
from models.sft.step import sft_step
from models.trajectory import Trajectory
from models.transformers_engine import TransformersEngine
from tests.killed import metrics_of, stage
from tests.training_data import questions, records

pytestmark = pytest.mark.integration

PRESET = load_preset("tiny")
NUM_QUESTIONS = 11  # six and five on two ranks


def config(model_path: str, data: Path, **changes: object) -> SFTRun:
    settings = {"num_epochs": 1, "batch_size": 8, "precision": "float32", "num_threads": 1, **changes}
    return SFTRun(
        model_path=model_path,
        records_path=str(data / "records.parquet"),
        validation_path=str(data / "records.parquet"),
        questions_path=str(data / "questions.parquet"),
        look=PRESET.look,
        sft=SFTConfig.model_validate(PRESET.sft.model_dump() | settings),
        freeze_vision=True,
        seed=0,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "records.parquet", records(8))
    return folder


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt two records: it looks and answers, whatever it is asked."""
    distributed.start(num_threads=1)
    policy = load_policy(resolve_model_path("embedded"))
    engine = distributed.initialise(policy, SFTConfig(precision="float32"))
    encoded = [policy.encoder.encode_record(record, PRESET.look) for record in records(2)]
    for _ in range(20):
        sft_step(engine, encoded, ["direct", "looks"], learning_rate=5e-3, max_tokens=1024)
    folder = tmp_path_factory.mktemp("model") / "learnt"
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="module")
def answered(model_path: Path) -> list[Trajectory]:
    """What it says to each question, found without the code under test."""
    engine = TransformersEngine(load_policy(model_path), PRESET.engine)
    return rollout(engine, questions(NUM_QUESTIONS), look=PRESET.look)


def test_two_ranks_under_zero_3_measure_what_one_rank_does(
    tmp_path: Path, data: Path, model_path: Path, answered: list[Trajectory]
) -> None:
    # Right is what it says to questions 0, 2, 4 and so on, and nothing that it says to the others.
    said = [extract_answer(one.sampled_text) for one in answered]
    asked = [
        replace(question, answers=(answer if answer and index % 2 == 0 else "something else",))
        for index, (question, answer) in enumerate(zip(questions(NUM_QUESTIONS), said, strict=True))
    ]
    num_right = sum(bool(answer) for answer in said[0::2])
    num_crops = sum(len(one.crops) for one in answered)
    assert 0 < num_right < sum(map(bool, said)), said
    assert len({one.num_sampled_tokens for one in answered}) >= 3, "ranks that end together show little"
    write_questions(data / "questions.parquet", asked)
    changes = {"learning_rate": 1e-7, "accuracy_questions": NUM_QUESTIONS}
    of_one, of_two = (
        config(str(model_path), data, num_ranks=num_ranks, zero_stage=zero_stage, **changes)
        for num_ranks, zero_stage in ((1, 0), (2, 3))
    )
    single, double = RunDir.create(tmp_path / "1", of_one), RunDir.create(tmp_path / "2", of_two)
    sft.train(single, of_one)
    with stage("models.sft.train", double, num_ranks=2) as started:
        started.finish()
    for step in (0, 1):
        alone, together = metrics_of(single)[step], metrics_of(double)[step]
        assert alone["sft/accuracy"] == together["sft/accuracy"] == num_right / NUM_QUESTIONS
        assert alone["sft/crops_per_question"] == num_crops / NUM_QUESTIONS
        assert together["sft/crops_per_question"] == num_crops / NUM_QUESTIONS
        assert alone["sft/unscored_share"] == together["sft/unscored_share"] == 0
        assert together["sft/validation_loss"] == pytest.approx(alone["sft/validation_loss"], rel=1e-5)
