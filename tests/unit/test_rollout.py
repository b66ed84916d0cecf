"""The look-again loop with engines that follow a script."""

from collections.abc import Callable

import pytest
from PIL import Image

from models.config import Look
from models.engine import ScriptedEngine
from models.errors import EngineError
from models.protocol import render_box
from models.records import Question
from models.region import Box, Size
from models.rollout import rollout, stream
from models.trajectory import (
    CropSpan,
    GenerationRequest,
    Piece,
    SampledSpan,
    StopReason,
    TextSpan,
    Trajectory,
    TurnError,
)

LOOK = Look(
    max_pixels=12544, max_crops=2, max_turns=5, max_sampled_tokens=400, max_aspect_ratio=10, repeated_iou=0.7
)
ANSWER = "It says K7.</think><answer>K7</answer>"


def _question(name: str = "q") -> Question:
    return Question.of_image(Image.new("RGB", (448, 448), (9, 90, 200)), "what?", id=name, answers=["K7"])


def _ask(box: Box) -> str:
    return f"I look. {render_box(box)}"


def _seen(*corners: float) -> Box:
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, "seen")


def _run(turns: list[str], look: Look = LOOK) -> Trajectory:
    """One trajectory whose k-th turn is ``turns[k]``; the last one is repeated."""
    engine = ScriptedEngine(lambda request: turns[min(_turn(request), len(turns) - 1)])
    (trajectory,) = rollout(engine, [_question()], look=look)
    return trajectory


def _turn(request: GenerationRequest) -> int:
    return sum(isinstance(span, SampledSpan) for span in request.spans)


def test_an_answer_at_once_ends_it():
    found = _run(["<think>Easy.</think><answer>K7</answer>"])
    assert (found.stop, found.events, found.crops) == (StopReason.ANSWERED, (), ())


def test_a_crop_stands_in_the_middle_of_the_turn():
    box = _seen(28, 28, 56, 56)
    found = _run([_ask(box), ANSWER])
    assert [type(span) for span in found.spans] == [SampledSpan, CropSpan, SampledSpan]
    # 28 x 28 seen pixels are 112 x 112 original ones: 1/16 of the area, zoomed by 2 to 224, cut to 112.
    assert found.crops[0].picture.size == Size(112, 112)
    assert found.accepted_boxes == (box,)
    assert found.text == _ask(box) + ANSWER
    assert found.stop is StopReason.ANSWERED


def test_asking_beyond_the_crop_limit_ends_it():
    found = _run([_ask(_seen(10 * k, 10, 10 * k + 9, 20)) for k in range(1, 5)])
    assert (found.stop, len(found.crops)) == (StopReason.CROP_LIMIT, 2)
    assert found.stop.is_truncated


def test_the_turn_limit_ends_it():
    found = _run(["some {braces}"])
    assert (found.stop, len(found.spans)) == (StopReason.TURN_LIMIT, 5)


def test_the_token_limit_counts_all_turns_together():
    """ScriptedEngine's tokens are characters: 30 + 30 + 30 + 10 are 100."""
    found = _run(["x" * 29 + "}"], LOOK.model_copy(update={"max_sampled_tokens": 100}))
    assert (found.stop, found.num_sampled_tokens) == (StopReason.TOKEN_LIMIT, 100)


def test_the_end_of_the_turn_without_an_answer_is_named():
    assert _run(["I do not know."]).stop is StopReason.END_WITHOUT_ANSWER


def test_an_answer_exactly_at_the_token_limit_counts():
    text = "<think>a</think><answer>K7</answer>"
    found = _run([text], LOOK.model_copy(update={"max_sampled_tokens": len(text)}))
    assert found.stop is StopReason.ANSWERED


def test_a_malformed_command_can_be_repaired():
    found = _run(['{"bbox_2d": [1, 2]}', _ask(_seen(28, 28, 56, 56)), ANSWER])
    assert found.errors == (TurnError.BAD_JSON,)
    assert [type(span) for span in found.spans[:3]] == [SampledSpan, TextSpan, SampledSpan]
    assert "refused" in found.text
    assert "refused" not in found.sampled_text
    assert (found.stop, len(found.crops)) == (StopReason.ANSWERED, 1)


BROKEN = {
    TurnError.BAD_JSON: '{"bbox_2d": [1, 2, 3]}',
    TurnError.INVERTED_BOX: _ask(_seen(50, 10, 20, 40)),
    TurnError.OUTSIDE_IMAGE: _ask(_seen(50, 10, 200, 40)),
    TurnError.TOO_SMALL: _ask(_seen(50, 10, 52, 40)),
    TurnError.ASPECT_RATIO: _ask(_seen(0, 10, 110, 15)),
    TurnError.REPEATED_BOX: _ask(_seen(60, 60, 90, 90)),
}


@pytest.mark.parametrize("error", list(TurnError))
def test_every_broken_command_has_a_name_and_no_crop(error):
    first = _ask(_seen(60, 60, 90, 91))
    found = _run([first, BROKEN[error], ANSWER])
    assert (found.errors, len(found.crops)) == ((error,), 1)


@pytest.mark.parametrize("error", list(TurnError))
def test_a_preset_may_end_on_a_broken_command(error):
    look = LOOK.model_copy(update={"end_on": frozenset({error})})
    found = _run([_ask(_seen(60, 60, 90, 91)), BROKEN[error], ANSWER], look)
    assert found.stop is StopReason.PROTOCOL_ERROR
    assert found.detail.startswith(error)


def test_a_command_behind_a_crop_is_not_read_together_with_the_one_before():
    found = _run([_ask(_seen(28, 28, 56, 56)), "a lone }", ANSWER])
    assert (found.errors, len(found.crops)) == ((), 1)


def test_without_crops_the_model_goes_on_after_its_command():
    found = _run([_ask(_seen(28, 28, 56, 56)), ANSWER], LOOK.model_copy(update={"crop_source": "none"}))
    assert [type(span) for span in found.spans] == [SampledSpan, SampledSpan]
    assert len(found.accepted_boxes) == 1


@pytest.mark.parametrize("source", ["low_resolution", "random_region"])
def test_ablations_give_another_picture_of_the_same_size(source):
    pixels = Image.effect_noise((448, 448), 90).convert("RGB")
    question = Question.of_image(pixels, "what?")
    turns = [_ask(_seen(28, 28, 56, 56)), ANSWER]
    crops = [
        rollout(
            ScriptedEngine(lambda request: turns[_turn(request)]),
            [question],
            look=LOOK.model_copy(update={"crop_source": chosen}),
        )[0].crops[0]
        for chosen in ("original", source)
    ]
    assert crops[0].picture.size == crops[1].picture.size
    assert crops[0].picture != crops[1].picture


def test_samples_stay_with_their_question():
    engine = ScriptedEngine(lambda request: f"<think>t</think><answer>{request.request_id}</answer>")
    found = rollout(engine, [_question("a"), _question("b")], look=LOOK, num_samples=3)
    assert [(t.question_id, t.sample_index) for t in found] == [(q, i) for q in "ab" for i in range(3)]
    assert all(f"{t.question_id}#{t.sample_index}" in t.text for t in found)


def test_samples_have_seeds_of_their_own_and_the_same_ones_next_time():
    def seeds() -> list[int | None]:
        seen: list[int | None] = []

        def script(request: GenerationRequest) -> str:
            seen.append(request.seed)
            return _ask(_seen(28, 28, 56, 56)) if not request.spans else ANSWER

        rollout(ScriptedEngine(script), [_question()], look=LOOK, num_samples=3, seed=7)
        return seen

    first = seeds()
    assert len(set(first)) == 6  # three samples of two turns
    assert first == seeds()


class SlowEngine(ScriptedEngine):
    """Never finishes the first trajectory before the others are done."""

    def __init__(self, script: Callable[[GenerationRequest], str]) -> None:
        super().__init__(script)
        self.held: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> None:
        if request.request_id.startswith("slow"):
            self.held.append(request)
        else:
            super().submit(request)

    def step(self) -> list[Piece]:
        pieces = super().step()
        if not pieces and self.held:
            super().submit(self.held.pop())
        return pieces


def test_a_slow_trajectory_holds_nobody_up():
    """The quick ones take their crops and answer while the slow one is still at its first turn."""
    turns = [_ask(_seen(28, 28, 56, 56)), _ask(_seen(60, 60, 90, 90)), ANSWER]
    engine = SlowEngine(lambda request: turns[_turn(request)])
    names = ["slow", "quick1", "quick2"]
    finished = [
        trajectory.question_id
        for trajectory in stream(
            engine,
            questions=[_question(name) for name in names],
            look=LOOK,
            num_samples=1,
            temperature=0.0,
            seed=0,
        )
    ]
    assert finished == ["quick1", "quick2", "slow"]


def test_no_more_than_the_limit_are_in_flight():
    class Counting(ScriptedEngine):
        in_flight = most = 0

        def submit(self, request: GenerationRequest) -> None:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            super().submit(request)

        def step(self) -> list[Piece]:
            pieces = super().step()
            self.in_flight -= len(pieces)
            return pieces

    engine = Counting(lambda request: ANSWER)
    questions = [_question(str(index)) for index in range(9)]
    found = list(
        stream(
            engine, questions=questions, look=LOOK, num_samples=1, temperature=0.0, seed=0, max_in_flight=4
        )
    )
    assert (len(found), engine.most) == (9, 4)


class FailingEngine(ScriptedEngine):
    """Fails the request of one question."""

    def step(self) -> list[Piece]:
        return [
            Piece(piece.request_id, SampledSpan(""), "error", "out of memory")
            if piece.request_id.startswith("bad")
            else piece
            for piece in super().step()
        ]


def test_an_engine_failure_is_ours_and_never_an_answer():
    bad, good = rollout(
        FailingEngine(lambda request: ANSWER), [_question("bad"), _question("good")], look=LOOK
    )
    assert (bad.stop, bad.detail, bad.text) == (StopReason.ENGINE_ERROR, "out of memory", "")
    assert bad.stop.is_our_failure
    assert good.stop is StopReason.ANSWERED


def test_a_lost_trajectory_is_an_error():
    class Losing(ScriptedEngine):
        def step(self) -> list[Piece]:
            super().step()
            raise EngineError("the engine died")

    with pytest.raises(EngineError, match="died"):
        rollout(Losing(lambda request: ANSWER), [_question()], look=LOOK)
