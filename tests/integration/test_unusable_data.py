"""Questions and records that cannot be trained on: named before anything is loaded or sampled."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models.config import SFTConfig
from models.errors import RecordError, TrainingError
from models.records import png_bytes, sha256, write_questions, write_records
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


def file(data, **changes):
    """A question's picture replaced by a whole file: its digest is right."""
    return {"image_bytes": data, "image_sha256": sha256(data), **changes}


def cut_off(width, height):
    """A file that ends within its pixels."""
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return png_bytes(Image.fromarray(pixels))[:-2000]


def picture(width, height):
    return png_bytes(Image.new("RGB", (width, height)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "what <|image_pad|> is it?"}, r"'question-3' holds the special token '<\|image_pad\|>'"),
        ({"id": "question-0"}, r"'question-0' is there twice"),
        ({"answers": ()}, r"'question-3' has no answer to compare with"),
        ({"answers": (" ",)}, r"'question-3' has no answer to compare with"),
        ({"text": "K7 " * 300}, r"'question-3' takes \d+ tokens .*engine.max_model_len is 512"),
        (file(b"no picture"), r"'question-3' has a picture that cannot be used .*does not decode"),
        (file(picture(70, 84)), r"'question-3' has a picture .*is 70x84, the record says"),
        (
            file(picture(402, 2), width=402, height=2),
            r"'question-3' has a picture .*over 200 times",
        ),
        (
            file(cut_off(84, 84), width=84, height=84),
            r"1 of 4 pictures cannot be used\. Question 'question-3': its picture does not decode",
        ),
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


def test_a_question_that_would_end_a_later_probe_is_refused_at_the_start(model_path, tmp_path):
    write_questions(tmp_path / "questions.parquet", questions(4))
    write_questions(tmp_path / "probe.parquet", [replace(questions(1)[0], **file(b"no picture"))])
    config = rgrpo_run(model_path, tmp_path / "questions.parquet", rgrpo_config(questions_per_step=1))
    config = config.model_copy(update={"probe_path": str(tmp_path / "probe.parquet")})
    with pytest.raises(RecordError, match=r"probe\.parquet: question 'question-0' has a picture"):
        rgrpo.train(RunDir.create(tmp_path / "run", config), config)


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
    asks = replace(last, question=replace(last.question, text="what <|vision_start|> is it?"))
    says = replace(last, steps=(replace(last.steps[0], text="It <|im_end|> is."), *last.steps[1:]))
    for number, broken in enumerate((asks, says)):
        with pytest.raises(TrainingError, match=r"Record 'question-3' .*holds the special token '<\|"):
            fine_tune(model_path, tmp_path / str(number), [*others, broken])


@pytest.mark.parametrize(
    ("corners", "fault"),
    [
        ((500, 0, 600, 9), "outside_image"),
        ((-500, -500, 50, 50), "outside_image"),
        ((50, 0, 20, 9), "inverted_box"),
        ((float("nan"), 0, 20, 9), "not of numbers"),
    ],
)
def test_a_record_with_a_box_of_something_else_is_named(model_path, tmp_path, corners, fault):
    *others, last = records(4)
    broken = replace(last, steps=(replace(last.steps[0], box=Box(*corners, "seen")),))
    with pytest.raises(TrainingError, match=rf"Record 'question-3' .*is {fault} in a picture seen at"):
        fine_tune(model_path, tmp_path, [*others, broken])


def test_records_that_are_all_too_long_are_told_from_none(model_path, tmp_path):
    with pytest.raises(
        TrainingError, match=r"holds 4 records, of which 4 are longer than sft\.max_tokens 64"
    ):
        fine_tune(model_path, tmp_path, records(4), max_tokens=64, max_dropped=1.0)
