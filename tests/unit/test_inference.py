"""Answers for programs: boxes in original pixels, confidence, pictures from anywhere."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from models.annotation import annotate
from models.config import Look
from models.engine import ScriptedEngine
from models.errors import RecordError
from models.inference import answer_confidence, answer_of, picture_question
from models.records import Question
from models.region import Size
from models.rollout import Asked, rollout, stream
from models.trajectory import Prompt, SampledSpan, StopReason, TextSpan, Trajectory

LOOK = Look(min_pixels=3136, max_pixels=12544, max_sampled_tokens=2000)
PIECES = (
    '<think>First {"bbox_2d": [30, 30, 20, 20]}',
    ' then {"bbox_2d": [28, 28, 56, 56], "image": 2}',
    ' and {"bbox_2d": [0, 0, 56, 28]}',
    " K7</think><answer> K7 </answer>",
)
WORDS = ["<think>", "so", "</think>", "<answer>", "K", "7", "</answer>"]


def play(*pieces: str, images: Sequence[Image.Image]) -> Trajectory:
    asked = Asked.about("q", "what code?", images, LOOK)
    script = iter(pieces)
    engine = ScriptedEngine(lambda request: next(script))
    (found,) = stream(engine, questions=[asked], look=LOOK, num_samples=1, temperature=0, seed=0)
    return found


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)


def sampled(*words: str) -> SampledSpan:
    ids = tuple(WORDS.index(word) for word in words)
    return SampledSpan(decode(ids), ids, tuple(-0.1 * (token + 1) for token in ids))


def of_spans(*spans) -> Trajectory:
    return Trajectory("q", 0, Prompt("?"), spans, (), StopReason.ANSWERED)


def test_a_picture_may_be_a_path_and_nothing_else_than_what_is_said(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    assert picture_question(tmp_path / "red.png", "?") == picture_question(str(tmp_path / "red.png"), "?")
    with pytest.raises(RecordError, match="cannot be a list"):
        picture_question([tmp_path / "red.png"], "?")


def test_boxes_are_given_in_pixels_of_the_picture_they_are_in():
    images = [Image.new("RGB", (448, 448)), Image.new("RGB", (224, 224))]
    found = answer_of(play(*PIECES, images=images), [Size(448, 448), Size(224, 224)], LOOK.budget)
    # Both are seen at 112 x 112; the inverted box was refused.
    expected = [((56, 56, 112, 112), 2), ((0, 0, 224, 112), 1)]
    assert [(box.corners, box.image) for box in found.boxes] == expected
    assert (found.answer, found.stop, found.confidence) == ("K7", "answered", None)
    assert found.rationale.startswith("<think>First")


def test_confidence_is_the_probability_of_the_tokens_of_the_answer():
    whole = of_spans(sampled(*WORDS))
    assert answer_confidence(whole, decode) == pytest.approx(math.exp(-0.5 - 0.6))
    # What we told the model in between is not its own; of two answers the last counts.
    parted = of_spans(sampled("<think>"), TextSpan(" [crop refused]"), sampled(*WORDS[1:]))
    assert answer_confidence(parted, decode) == pytest.approx(math.exp(-0.5 - 0.6))
    twice = of_spans(sampled(*WORDS, "<answer>", "7", "</answer>"))
    assert answer_confidence(twice, decode) == pytest.approx(math.exp(-0.6))


@pytest.mark.parametrize(
    "spans",
    [
        (),
        (sampled("<think>", "so"),),
        (sampled("<answer>", "K"),),
        (sampled("</answer>"),),
        (sampled("<answer>", "</answer>"),),
        (SampledSpan("<answer>K</answer>"),),
    ],
)
def test_without_answer_or_logprobs_there_is_no_confidence(spans):
    assert answer_confidence(of_spans(*spans), decode) is None


def test_a_picture_comes_as_bytes_path_or_data_uri(tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").save(path)
    data = path.read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    digests = {picture_question(form, "?").image_sha256 for form in (data, str(path), uri)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no picture",
        "nowhere.png",
        "",
        "data:image/png;base64,@@@",
        "data:image/png,abc",
        "data:image/png;base64,aGVsbG8=",
    ],
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(RecordError, match="cannot be read as a picture"):
        picture_question(image, "?")


def test_half_a_picture_is_refused():
    whole = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(whole, format="PNG")
    with pytest.raises(RecordError, match="cannot be read as a picture"):
        picture_question(whole.getvalue()[:2000], "?")


def colours_at(image: Image.Image, *places: tuple[int, int]) -> list:
    return [image.getpixel(place) for place in places]


def test_the_annotated_picture_shows_boxes_and_crops():
    images = [Image.new("RGB", (448, 224), "black"), Image.new("RGB", (224, 224), "grey")]
    found = annotate(play(*PIECES, images=images), images, LOOK.budget)
    # Pictures below each other on the left, the two crops beside them.
    assert found.size == (16 + 896 + 16 + 320 + 16, 16 + 448 + 16 + 896 + 16)
    assert colours_at(found, (900, 400), (900, 1300)) == [(0, 0, 0), (128, 128, 128)]
    # 224 x 224 is seen at 112 x 112 and drawn at 896 x 896: the box from 28 is drawn from 16 + 224.
    blue = (0, 114, 178)
    assert colours_at(found, (16 + 224 + 100, 480 + 224), (16 + 224, 480 + 300)) == [blue, blue]
    # The crop of the second picture comes first, framed in the same colour.
    assert colours_at(found, (928 + 100, 44), (928 + 100, 44 + 100)) == [blue, (128, 128, 128)]


def test_an_answer_without_a_look_is_the_picture_alone():
    image = Image.new("RGB", (100, 100), "black")
    (found,) = rollout(
        ScriptedEngine(lambda request: "<answer>K7</answer>"), [Question.of_image(image, "?")], look=LOOK
    )
    assert annotate(found, [image], LOOK.budget).size == (928, 928)
