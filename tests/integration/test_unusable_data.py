"""Questions and records that cannot be trained on: named before anything is loaded or sampled."""

from dataclasses import replace

import pytest

from models.errors import RecordError
from models.records import write_questions
from models.rgrpo import train as rgrpo
from models.rundir import RunDir
from tests.tiny_models import save_random_model
from tests.training_data import questions, rgrpo_config, rgrpo_run

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
