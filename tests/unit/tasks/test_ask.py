"""One question told while it is answered."""

from pathlib import Path

import pytest
from PIL import Image

from models.config import EngineConfig, Look
from models.engine import ScriptedEngine
from models.errors import ConfigError, EngineError
from models.policy import load_policy
from models.records import Question
from models.trajectory import Piece, SampledSpan
from models.transformers_engine import TransformersEngine
from tasks.ask import ask, check_picture, read_question

LOOK = Look(min_pixels=3136, max_pixels=12544, max_sampled_tokens=400)
PIECES = (
    '<think>First {"bbox_2d": [30, 30, 20, 20]}',
    ' then {"bbox_2d": [28, 28, 56, 56]}',
    " K7</think><answer>K7</answer>",
)


@pytest.fixture
def question() -> Question:
    return Question.of_image(Image.linear_gradient("L").resize((448, 448)), "what code?")


def test_what_is_written_and_seen_is_told_in_order(question):
    script, told = iter(PIECES), []
    trajectory = ask(question, ScriptedEngine(lambda request: next(script)), LOOK, told.append)
    refused = " [crop refused: x1 must be less than x2 and y1 less than y2]\n"
    look = "\n  [1: looks at [112, 112, 224, 224], 112 x 112 pixels]\n"
    size = trajectory.crops[0].picture.size
    assert (size.width, size.height) == (112, 112)
    assert told == [PIECES[0], refused, PIECES[1], look, PIECES[2]]


def test_drafts_are_told_as_they_grow_and_nothing_twice(question, untied_model):
    """A model of random weights babbles up to its limit, letters of several bytes among it."""
    engine = TransformersEngine(load_policy(untied_model), EngineConfig(dtype="float32", max_model_len=512))
    told: list[str] = []
    trajectory = ask(question, engine, LOOK.model_copy(update={"max_sampled_tokens": 40}), told.append)
    assert trajectory.num_sampled_tokens > 3
    assert "".join(told) == trajectory.text
    assert len([text for text in told if text]) > 3


def test_our_failure_is_no_answer(question):
    class Broken(ScriptedEngine):
        def _answer(self, request):
            return Piece(request.request_id, SampledSpan(""), "error", "out of memory")

    with pytest.raises(EngineError, match="not answered: out of memory"):
        ask(question, Broken(lambda request: ""), LOOK, lambda text: None)


def test_a_question_needs_a_picture_and_words(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        read_question(tmp_path / "nowhere.png", "what code?")
    Image.new("RGB", (40, 40)).save(tmp_path / "here.png")
    with pytest.raises(ConfigError, match="question is empty"):
        read_question(tmp_path / "here.png", " ")


def test_the_drawing_goes_to_a_file_that_can_be_written(tmp_path: Path):
    assert check_picture(tmp_path / "seen.png") == tmp_path / "seen.png"
    with pytest.raises(ConfigError, match=r"\.png, \.jpg or \.webp"):
        check_picture(tmp_path / "seen.txt")
    with pytest.raises(ConfigError, match="no folder that can be written to"):
        check_picture(tmp_path / "nowhere" / "seen.png")
