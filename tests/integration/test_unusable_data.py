"""Questions and records that cannot be trained on: named before anything is loaded or sampled."""

from dataclasses import replace

import pytest

from models.config import SFTConfig
from models.errors import RecordError, TrainingError
from models.records import write_questions, write_records
from models.region import Box
from models.rgrpo import train as rgrpo
from models.rundir import RunDir
from models.sft import train as sft
from tests.tiny_models import save_random_model
from tests.training_data import questions, records, rgrpo_config, rgrpo_run, sft_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "what <|image_pad|> is it?"}, r"'question-3' holds the special token '<\|image_pad\|>'"),
        ({"id": "question-0"}, r"'question-0' is there twice"),
        ({"answers": ()}, r"'question-3' has no answer to compare with"),
    ],
)
def test_a_question_that_would_end_a_later_step_is_refused_at_the_start(
    model_path, tmp_path, change, message
):
    """With one question per step the last of four would be met in the fourth step at the latest."""
    *others, last = questions(4)
    write_questions(tmp_path / "questions.parquet", [*others, replace(last, **change)])
    config = rgrpo_run(model_path, tmp_path / "questions.parquet", rgrpo_config(questions_per_step=1))
    run = RunDir.create(tmp_path / "run", config)
    with pytest.raises(RecordError, match=message):
        rgrpo.train(run, config)
    assert not (run.path / "rollouts").exists()


def fine_tune(model_path, folder, made, validation=(), **changes):
    """Fine-tuning on ``made``, with ``validation`` beside it where there is any."""
    write_records(folder / "records.parquet", made)
    if validation:
        write_records(folder / "validation.parquet", validation)
    small = {"num_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "precision": "float32"}
    config = sft_run(
        model_path,
        folder / "records.parquet",
        SFTConfig.model_validate({**small, **changes}),
        validation_path=folder / "validation.parquet" if validation else None,
    )
    return sft.train(RunDir.create(folder / "run", config), config)


def test_an_early_stop_that_nothing_is_watched_for_is_refused(model_path, tmp_path):
    """Without validation records the loss is never measured: all epochs would be trained in silence."""
    with pytest.raises(TrainingError, match=r"early_stop_patience is 1.* hold no validation records"):
        fine_tune(model_path, tmp_path / "none", records(4), early_stop_patience=1)
    watched = fine_tune(model_path, tmp_path, records(4), records(2), early_stop_patience=1)
    assert watched.status == "done"


def test_a_record_that_cannot_be_encoded_is_named(model_path, tmp_path):
    *others, last = records(4)
    broken = replace(last, question=replace(last.question, text="what <|image_pad|> is it?"))
    with pytest.raises(TrainingError, match=r"Record 'question-3' .*2 image pads for 1 picture"):
        fine_tune(model_path, tmp_path, [*others, broken])
    far = replace(last, steps=(replace(last.steps[0], box=Box(500, 0, 600, 9, "seen")),))
    with pytest.raises(TrainingError, match=r"Record 'question-3' .*encloses no pixel"):
        fine_tune(model_path, tmp_path / "far", [*others, far])


def test_records_that_are_all_too_long_are_told_from_none(model_path, tmp_path):
    with pytest.raises(
        TrainingError, match=r"holds 4 records, of which 4 are longer than sft\.max_tokens 64"
    ):
        fine_tune(model_path, tmp_path, records(4), max_tokens=64, max_dropped=1.0)
