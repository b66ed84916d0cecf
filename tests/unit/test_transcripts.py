"""Trajectories survive the disk, and crops can be cut again."""

from dataclasses import replace

import pyarrow as pa
import pytest
from PIL import Image

from models.config import CropSourceName, Look
from models.engine import ScriptedEngine
from models.errors import RecordError
from models.records import Question, read_rows, write_rows
from models.rgrpo.rollouts import rebuilt
from models.rollout import rollout
from models.trajectory import Reward, SampledSpan, Trajectory, TurnError
from models.transcripts import (
    TRANSCRIPT_FIELDS,
    TRANSCRIPT_SCHEMA,
    TRANSCRIPT_VERSION,
    Transcript,
    read_transcripts,
    recut,
    transcript_of,
    transcript_row,
    write_transcripts,
)

PIECES = (
    '<think>First a wrong one {"bbox_2d": [30, 30, 20, 20]}',
    ' then a right one {"bbox_2d": [10, 10, 40, 30]}',
    " K7</think><answer>K7</answer>",
)


@pytest.fixture
def question() -> Question:
    image = Image.linear_gradient("L").resize((448, 448)).convert("RGB")
    return Question.of_image(image, "what code?", answers=["K7"])


def attempt(question: Question, *, crop_source: CropSourceName = "original") -> Trajectory:
    """A trajectory with a refused box, an accepted one, and an answer."""
    script = iter(PIECES)
    look = Look(min_pixels=3136, max_pixels=12544, max_sampled_tokens=400, crop_source=crop_source)
    (trajectory,) = rollout(ScriptedEngine(lambda request: next(script)), [question], look=look)
    return trajectory


def test_a_transcript_comes_back_from_the_file_unchanged(question, tmp_path):
    trajectory = attempt(question)
    plain = Transcript.of(trajectory)
    scored = Transcript.of(trajectory.with_reward(Reward(1.0, 1.0, 0.5, 0.01)))
    silent = replace(
        plain, spans=(SampledSpan("no ids"), SampledSpan("counted", reported_tokens=3)), system=None
    )
    assert write_transcripts(tmp_path / "t.parquet", [plain, scored, silent]) == 3
    assert read_transcripts(tmp_path / "t.parquet") == [plain, scored, silent]
    assert silent.num_sampled_tokens == 3


def test_a_transcript_tells_what_the_trajectory_told(question):
    trajectory = attempt(question)
    transcript = Transcript.of(trajectory)
    assert transcript.text == trajectory.text
    assert transcript.sampled_text == "".join(PIECES)
    assert transcript.num_sampled_tokens == trajectory.num_sampled_tokens == len("".join(PIECES))
    assert transcript.errors == (TurnError.INVERTED_BOX,)
    assert transcript.accepted_boxes == trajectory.accepted_boxes
    assert [crop.digest for crop in transcript.crops] == [span.picture.digest for span in trajectory.crops]


@pytest.mark.parametrize("source", ["original", "low_resolution", "random_region", "blank"])
def test_a_crop_is_cut_again_to_the_same_pixels(question, source):
    trajectory = attempt(question, crop_source=source)
    (crop,) = Transcript.of(trajectory).crops
    budget = Look(min_pixels=3136, max_pixels=12544).budget
    again = recut(question.image(), crop, budget=budget, source=source)
    assert again == trajectory.crops[0].picture


def test_a_crop_of_another_picture_is_refused(question):
    (crop,) = Transcript.of(attempt(question)).crops
    other = Image.new("RGB", (448, 448))
    with pytest.raises(RecordError, match="differs from the one shown"):
        recut(other, crop, budget=Look(min_pixels=3136, max_pixels=12544).budget, source="original")


def test_extra_columns_can_be_added_beside_a_transcript(question, tmp_path):
    transcript = Transcript.of(attempt(question))
    schema = pa.schema([*TRANSCRIPT_FIELDS, ("advantage", pa.float64())])
    row = {**transcript_row(transcript), "advantage": -0.5}
    write_rows(tmp_path / "t.parquet", schema, [row], version=TRANSCRIPT_VERSION)
    (found,) = read_rows(tmp_path / "t.parquet", schema, version=TRANSCRIPT_VERSION)
    assert (transcript_of(found), found["advantage"]) == (transcript, -0.5)
    assert read_transcripts(tmp_path / "t.parquet") == [transcript]


def test_a_file_of_another_version_is_refused(tmp_path):
    write_rows(tmp_path / "t.parquet", TRANSCRIPT_SCHEMA, [], version="transcript/0")
    with pytest.raises(RecordError, match="transcript/0"):
        read_transcripts(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"stop": "weird"},
        {"views": None},
        {"reward": {"luck": 1.0}},
        {"events": [{"box": [0.0, 0.0, 30.0], "image": 1, "error": None}]},
    ],
)
def test_a_row_that_is_none_of_ours_names_its_trajectory(question, change):
    row = {**transcript_row(Transcript.of(attempt(question))), **change}
    with pytest.raises(RecordError, match=f"The transcript of '{question.id}' #0 is damaged: "):
        transcript_of(row)


@pytest.mark.parametrize("image", [0, 2])
def test_a_crop_of_a_picture_that_the_question_does_not_have_is_refused(question, image):
    transcript = Transcript.of(attempt(question))
    look = Look(min_pixels=3136, max_pixels=12544, max_sampled_tokens=400)
    assert rebuilt(transcript, question, look) == attempt(question)
    spans = tuple(
        replace(span, image=image) if span in transcript.crops else span for span in transcript.spans
    )
    with pytest.raises(RecordError, match=f"of picture {image} of question '{question.id}', which has 1"):
        rebuilt(replace(transcript, spans=spans), question, look)
