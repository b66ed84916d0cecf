from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models.config import Look
from models.engine import ScriptedEngine
from models.errors import EngineError, RecordError
from models.protocol import SEVERAL_IMAGES
from models.records import Question
from models.region import Box, Picture, look, look_low_resolution
from models.rollout import MESSAGES, Asked, derive_seed, rollout, stream
from models.trajectory import (
    BoxEvent,
    CropSpan,
    GenerationRequest,
    Piece,
    SampledSpan,
    StopReason,
    TextSpan,
    TurnError,
)

# A picture of 448 x 448 is seen at 112 x 112, a quarter of its size.
LOOK = Look(min_pixels=3136, max_pixels=12544, max_crops=3, max_turns=8, max_sampled_tokens=2000)
COMMAND = '{"bbox_2d": [28, 28, 56, 56]}'
OTHER = '{"bbox_2d": [56, 0, 112, 56]}'
THIRD = '{"bbox_2d": [0, 70, 40, 110]}'
BROKEN = '{"bbox_2d": [1, 2, 3]}'
ANSWER = " It says K7.</think><answer>K7</answer>"


def noise(width=448, height=448) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGE = noise()


def question(id="q", image=IMAGE) -> Question:
    return Question.of_image(image, "what code is on the red card?", id=id, answers=["K7"])


def turns(*texts: str) -> ScriptedEngine:
    """An engine that writes these texts, one per turn, whatever it is shown."""

    def script(request: GenerationRequest) -> str:
        return texts[sum(isinstance(span, SampledSpan) for span in request.spans)]

    return ScriptedEngine(script)


def play(*texts: str, look=LOOK, image=IMAGE):
    (trajectory,) = rollout(turns(*texts), [question(image=image)], look=look)
    return trajectory


def kinds(trajectory) -> list[type]:
    return [type(span) for span in trajectory.spans]


def test_answering_at_once():
    trajectory = play("<think>Easy.</think><answer>K7</answer>")
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.text == "<think>Easy.</think><answer>K7</answer>"
    assert kinds(trajectory) == [SampledSpan]
    assert trajectory.events == ()


def test_the_prompt_shows_the_picture_as_the_model_sees_it():
    prompt = play(ANSWER).prompt
    assert [picture.size.width for picture in prompt.pictures] == [112]
    assert prompt.text == "what code is on the red card?"
    assert prompt.system == LOOK.system


def test_a_crop_command_is_answered_in_the_middle_of_the_turn():
    trajectory = play(f"<think>Look. {COMMAND}", ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert kinds(trajectory) == [SampledSpan, CropSpan, SampledSpan]
    asked = Box(28, 28, 56, 56, "seen")
    assert trajectory.events == (BoxEvent(asked),)
    # Cut from the original: the box is four times as large there.
    expected = look(IMAGE, Box(112, 112, 224, 224, "original"), LOOK.budget)
    assert trajectory.crops == (CropSpan(expected, asked),)
    assert trajectory.text == f"<think>Look. {COMMAND}{ANSWER}"


def test_the_next_turn_sees_the_turn_so_far():
    requests = []

    def script(request):
        requests.append(request)
        return f"<think>{COMMAND}" if len(requests) == 1 else ANSWER

    rollout(ScriptedEngine(script), [question()], look=LOOK)
    assert requests[0].spans == ()
    assert [type(span) for span in requests[1].spans] == [SampledSpan, CropSpan]
    assert requests[1].prompt is requests[0].prompt
    # 2000 tokens less what the first turn took; the scripted engine's tokens are characters.
    assert requests[1].max_new_tokens == 2000 - len(f"<think>{COMMAND}")
    assert requests[1].seed != requests[0].seed


def test_two_looks():
    trajectory = play(COMMAND, OTHER, ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert [box.corners() for box in trajectory.accepted_boxes] == [(28, 28, 56, 56), (56, 0, 112, 56)]
    assert len(trajectory.crops) == 2


def test_braces_that_ask_for_nothing_do_not_end_the_turn():
    trajectory = play("<think>A set {1, 2}", ' and {"a": {}', "}", " too.</think><answer>3</answer>")
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.events == ()
    assert trajectory.text == '<think>A set {1, 2} and {"a": {}} too.</think><answer>3</answer>'


def test_a_command_completed_over_two_turns_is_seen():
    # Generation pauses at the inner brace already; the outer one completes the command.
    trajectory = play('{"why": {}', ', "bbox_2d": [28, 28, 56, 56]}', ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert len(trajectory.crops) == 1


def test_the_crop_limit_ends_the_trajectory():
    trajectory = play(COMMAND, OTHER, THIRD, '{"bbox_2d": [0, 0, 20, 20]}', ANSWER)
    assert trajectory.stop is StopReason.CROP_LIMIT
    assert trajectory.stop.is_truncated
    assert len(trajectory.crops) == LOOK.max_crops == 3


def test_no_crop_is_allowed_when_the_limit_is_zero():
    trajectory = play(COMMAND, ANSWER, look=LOOK.model_copy(update={"max_crops": 0}))
    assert trajectory.stop is StopReason.CROP_LIMIT
    assert trajectory.crops == ()


def test_the_turn_limit_ends_the_trajectory():
    trajectory = play(*[BROKEN] * 9)
    assert trajectory.stop is StopReason.TURN_LIMIT
    assert len(trajectory.events) == LOOK.max_turns == 8


def test_an_answer_in_the_last_turn_counts():
    assert play(*[BROKEN] * 7, ANSWER).stop is StopReason.ANSWERED


def test_formulas_use_up_no_turns():
    trajectory = play(*[r"\frac{1}", "{2}"] * 20, ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.events == ()


@pytest.mark.parametrize("closing", [("}",), ("}", "}"), ("}}",), ("} ]}",)])
def test_a_command_within_an_object_gets_one_crop(closing):
    """Whether the tokenizer glues the braces or not."""
    wrapped = '{"name": "crop", "arguments": ' + COMMAND
    apart = play(wrapped, *closing, ANSWER)
    glued = play(wrapped + closing[0], *closing[1:], ANSWER)
    for trajectory in (apart, glued):
        assert trajectory.stop is StopReason.ANSWERED
        assert [event.error for event in trajectory.events] == [None]


def test_a_refused_command_within_an_object_is_refused_once():
    trajectory = play('{"arguments": ' + BROKEN, "}", ANSWER)
    assert trajectory.stop is StopReason.ANSWERED
    assert len(trajectory.events) == 1


def test_the_token_limit_ends_the_trajectory():
    limited = LOOK.model_copy(update={"max_sampled_tokens": 50})
    trajectory = play("x" * 60, look=limited)
    assert (trajectory.stop, trajectory.num_sampled_tokens) == (StopReason.TOKEN_LIMIT, 50)
    # 29 characters for the command leave 21 for the answer, which takes 39.
    assert (len(COMMAND), len(ANSWER)) == (29, 39)
    trajectory = play(COMMAND, ANSWER, look=limited)
    assert (trajectory.stop, trajectory.num_sampled_tokens) == (StopReason.TOKEN_LIMIT, 50)
    assert trajectory.stop.is_truncated


def test_a_box_that_a_limit_cut_off_is_neither_mended_nor_cropped():
    # After 29 characters the closing brace is missing, or was the last.
    for text in (COMMAND[:-1] + "xx", COMMAND):
        trajectory = play(text, ANSWER, look=LOOK.model_copy(update={"max_sampled_tokens": 29}))
        assert trajectory.stop is StopReason.TOKEN_LIMIT
        assert (trajectory.crops, trajectory.events) == ((), ())
        assert trajectory.sampled_text == text[:29]


def test_a_trajectory_may_use_its_last_token():
    exact = LOOK.model_copy(update={"max_sampled_tokens": 29 + 39})
    assert play(COMMAND, ANSWER, look=exact).stop is StopReason.ANSWERED


def test_ending_without_an_answer_is_named():
    trajectory = play("I do not know.")
    assert trajectory.stop is StopReason.END_WITHOUT_ANSWER
    assert not trajectory.stop.is_truncated


# Every way to break the protocol; the second turn repairs it.
ERRORS = {
    TurnError.BAD_JSON: [BROKEN],
    TurnError.NO_SUCH_IMAGE: ['{"bbox_2d": [28, 28, 56, 56], "image": 2}'],
    TurnError.INVERTED_BOX: ['{"bbox_2d": [56, 28, 28, 56]}'],
    TurnError.OUTSIDE_IMAGE: ['{"bbox_2d": [28, 28, 113, 56]}'],
    TurnError.TOO_SMALL: ['{"bbox_2d": [28, 28, 31, 56]}'],
    TurnError.ASPECT_RATIO: ['{"bbox_2d": [0, 0, 112, 4]}'],
    TurnError.REPEATED_BOX: [THIRD, THIRD],
}
STRICT = LOOK.model_copy(update={"max_aspect_ratio": 10})


@pytest.mark.parametrize("error", TurnError)
def test_a_broken_command_is_told_and_can_be_repaired(error):
    trajectory = play(*ERRORS[error], COMMAND, ANSWER, look=STRICT)
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.errors == (error,)
    told = [span for span in trajectory.spans if isinstance(span, TextSpan)]
    assert told == [TextSpan(MESSAGES[error])]
    assert trajectory.accepted_boxes[-1].corners() == (28, 28, 56, 56)
    # What we told the model is not what it wrote.
    assert MESSAGES[error] in trajectory.text
    assert MESSAGES[error] not in trajectory.sampled_text


@pytest.mark.parametrize("error", TurnError)
def test_a_broken_command_ends_the_trajectory_where_the_preset_says_so(error):
    ending = STRICT.model_copy(update={"end_on": frozenset({error})})
    trajectory = play(*ERRORS[error], COMMAND, ANSWER, look=ending)
    assert trajectory.stop is StopReason.PROTOCOL_ERROR
    assert trajectory.errors == (error,)
    assert error.value in trajectory.detail
    assert not trajectory.stop.is_our_failure


def test_there_is_nothing_to_crop_in_a_question_without_picture():
    asked = Asked.about("plain", "which one is a metal?", [], LOOK)
    (trajectory,) = stream(
        turns(COMMAND, ANSWER), questions=[asked], look=LOOK, num_samples=1, temperature=0, seed=0
    )
    assert trajectory.prompt.pictures == ()
    assert trajectory.prompt.system == LOOK.system
    assert trajectory.errors == (TurnError.NO_SUCH_IMAGE,)
    assert trajectory.stop is StopReason.ANSWERED


def test_the_system_prompt_of_several_pictures_says_how_to_name_one():
    asked = Asked.about("two", "compare", [IMAGE, noise(200, 100)], LOOK, places=(0, 7))
    assert asked.prompt.system == LOOK.system + SEVERAL_IMAGES.format(number=2)
    example = asked.prompt.system[asked.prompt.system.rindex("{") :]
    assert example == '{"bbox_2d": [x1, y1, x2, y2], "image": 2}.'
    assert list(asked.prompt.parts()) == [asked.prompt.pictures[0], "compare", asked.prompt.pictures[1]]
    assert [view.seen.width for view in asked.views] == [112, 140]
    direct = LOOK.model_copy(update={"system": None})
    assert Asked.about("two", "compare", [IMAGE, IMAGE], direct).prompt.system is None


def test_a_box_is_judged_by_the_picture_it_names():
    # 200 x 100 is seen at 140 x 84: the box is inside the first picture only.
    asked = Asked.about("two", "compare", [IMAGE, noise(200, 100)], LOOK)
    outside = '{"bbox_2d": [0, 70, 40, 110], "image": 2}'
    (trajectory,) = stream(
        turns(THIRD, outside, ANSWER), questions=[asked], look=LOOK, num_samples=1, temperature=0, seed=0
    )
    assert [(event.image, event.error) for event in trajectory.events] == [
        (1, None),
        (2, TurnError.OUTSIDE_IMAGE),
    ]


def test_the_unparsed_command_is_kept_as_an_event():
    (event,) = play('{"bbox_2d": "here"}', ANSWER).events
    assert event == BoxEvent(None, TurnError.BAD_JSON)


def test_a_box_that_is_too_long_only_in_the_original_is_the_models_error():
    # 400 x 5 is seen at 392 x 28. A box of 392 x 4 there (ratio 98) is 400 x 1 in the original: no crop of
    # ratio 400 can be resized. That is a protocol error, not a crash of the run.
    trajectory = play('{"bbox_2d": [0, 0, 392, 4]}', ANSWER, image=noise(400, 5))
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.errors == (TurnError.ASPECT_RATIO,)
    assert trajectory.crops == ()


@pytest.mark.parametrize("source", ["original", "low_resolution", "random_region", "blank", "none"])
def test_crop_sources(source):
    trajectory = play(COMMAND, ANSWER, look=LOOK.model_copy(update={"crop_source": source}))
    assert trajectory.stop is StopReason.ANSWERED
    assert len(trajectory.accepted_boxes) == 1
    region = Box(112, 112, 224, 224, "original")
    fair = look_low_resolution(IMAGE, region, LOOK.budget)
    true = look(IMAGE, region, LOOK.budget)
    shown = [crop.picture for crop in trajectory.crops]
    if source == "none":
        assert shown == []
        return
    (picture,) = shown
    assert picture.size == true.size  # every source costs the same tokens
    assert (picture == true) is (source == "original")
    assert (picture == fair) is (source == "low_resolution")
    assert (len(picture.image.getcolors(picture.size.area)) == 1) is (source == "blank")


class ShuffledEngine:
    """Answers one waiting request per step, in an order drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._waiting: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> None:
        self._waiting.append(request)

    def step(self) -> list[Piece]:
        request = self._waiting.pop(int(self._rng.integers(len(self._waiting))))
        text = COMMAND if not request.spans else f"{request.request_id} asks {request.prompt.text}</answer>"
        return [Piece(request.request_id, SampledSpan(text), "stop")]

    def abort(self, request_id: str) -> None: ...

    def close(self) -> None: ...


def test_rollouts_stay_with_their_question():
    questions = [replace(question(f"q{i}"), text=f"question {i}", answers=(str(i),)) for i in range(5)]
    trajectories = rollout(ShuffledEngine(3), questions, look=LOOK, num_samples=4)
    places = [(trajectory.question_id, trajectory.sample_index) for trajectory in trajectories]
    assert places == [(f"q{i}", sample) for i in range(5) for sample in range(4)]
    for i, trajectory in enumerate(trajectories):
        asked = f"q{i // 4}#{i % 4} asks question {i // 4}</answer>"
        assert trajectory.spans[-1].text == asked


class StuckEngine(ScriptedEngine):
    """Holds one trajectory back until nothing else is left."""

    def __init__(self, stuck: str, script) -> None:
        super().__init__(script)
        self._stuck = stuck
        self._held: list[GenerationRequest] = []

    def submit(self, request):
        (self._held if request.request_id == self._stuck else self._waiting).append(request)

    def step(self):
        if not self._waiting:
            self._waiting, self._held = self._held, []
        return super().step()


def test_a_slow_trajectory_holds_nobody_up():
    engine = StuckEngine("q0#0", lambda request: ANSWER if request.spans else COMMAND)
    finished = stream(
        engine,
        questions=[question(f"q{i}") for i in range(4)],
        look=LOOK,
        num_samples=1,
        temperature=0.0,
        seed=0,
    )
    # The others go through all their turns while the slow one has not even begun.
    assert [trajectory.question_id for trajectory in finished] == ["q1", "q2", "q3", "q0"]


class BrokenEngine(ScriptedEngine):
    """Fails one request, or altogether, or invents one."""

    def __init__(self, failure: str) -> None:
        super().__init__(lambda request: ANSWER)
        self._failure = failure
        self.aborted: list[str] = []

    def step(self):
        if self._failure == "whole":
            raise EngineError("out of memory")
        pieces = super().step()
        if self._failure == "stranger":
            return [replace(pieces[0], request_id="stranger")]
        failed = Piece("q1#0", SampledSpan(""), "error", "too hot")
        return [failed if piece.request_id == "q1#0" else piece for piece in pieces]

    def abort(self, request_id):
        self.aborted.append(request_id)


def test_a_failed_request_never_becomes_an_answer():
    trajectories = rollout(BrokenEngine("one"), [question(f"q{i}") for i in range(3)], look=LOOK)
    stops = [trajectory.stop for trajectory in trajectories]
    assert stops == [StopReason.ANSWERED, StopReason.ENGINE_ERROR, StopReason.ANSWERED]
    broken = trajectories[1]
    assert broken.stop.is_our_failure
    assert broken.detail == "too hot"
    assert broken.text == ""


def test_a_failed_engine_fails_the_rollout():
    engine = BrokenEngine("whole")
    with pytest.raises(EngineError, match="out of memory"):
        rollout(engine, [question("q0"), question("q1")], look=LOOK)
    assert engine.aborted == ["q0#0", "q1#0"]


def test_an_unexpected_piece_is_noticed():
    with pytest.raises(EngineError, match="stranger"):
        rollout(BrokenEngine("stranger"), [question()], look=LOOK)


def test_stopping_early_leaves_nothing_in_the_engine():
    engine = BrokenEngine("one")
    finished: Iterator = stream(
        engine,
        questions=[question(f"q{i}") for i in range(3)],
        look=LOOK,
        num_samples=1,
        temperature=0.0,
        seed=0,
    )
    next(finished)
    finished.close()
    assert engine.aborted == ["q1#0", "q2#0"]


def test_in_flight_is_bounded():
    most = []

    class Counting(ScriptedEngine):
        def step(self):
            most.append(len(self._waiting))
            return super().step()

    engine = Counting(lambda request: ANSWER if request.spans else COMMAND)
    finished = stream(
        engine,
        questions=(question(f"q{i}") for i in range(7)),
        look=LOOK,
        num_samples=1,
        temperature=0.0,
        seed=0,
        max_in_flight=2,
    )
    assert len(list(finished)) == 7
    assert max(most) == 2


def test_two_questions_must_not_share_an_id():
    with pytest.raises(RecordError, match="ids must be unique"):
        rollout(turns(ANSWER), [question("q"), question("q")], look=LOOK)


def test_samples_of_a_question_have_their_own_seeds():
    seeds = []

    def script(request):
        seeds.append(request.seed)
        return ANSWER

    for seed in (0, 0, 1):
        rollout(ScriptedEngine(script), [question("a"), question("b")], look=LOOK, num_samples=3, seed=seed)
    first, again, other = seeds[:6], seeds[6:12], seeds[12:]
    assert len(set(first)) == 6
    assert first == again
    assert not set(first) & set(other)


def test_seeds_do_not_depend_on_the_process():
    # printf 7/q/2 | sha256sum begins with 378db9a9d4c83824: a big-endian integer, shifted right by one bit.
    assert derive_seed(7, "q", 2) == 0x378DB9A9D4C83824 >> 1


def test_an_engine_that_does_not_count_tokens_is_bounded_by_characters():
    class Silent(ShuffledEngine):
        def step(self):
            request = self._waiting.pop()
            return [Piece(request.request_id, SampledSpan("{1, 2, 3}"), "stop")]

    limited = LOOK.model_copy(update={"max_sampled_tokens": 20})
    (trajectory,) = rollout(Silent(0), [question()], look=limited)
    # Pieces of 9 characters: the third passes 20.
    assert (trajectory.stop, len(trajectory.spans)) == (StopReason.TOKEN_LIMIT, 3)


def test_tokens_that_an_endpoint_reports_are_counted():
    class Reporting(ShuffledEngine):
        def step(self):
            request = self._waiting.pop()
            return [Piece(request.request_id, SampledSpan("{1, 2, 3}", reported_tokens=5), "stop")]

    limited = LOOK.model_copy(update={"max_sampled_tokens": 20})
    (trajectory,) = rollout(Reporting(0), [question()], look=limited)
    assert (trajectory.stop, len(trajectory.spans)) == (StopReason.TOKEN_LIMIT, 4)
    assert trajectory.num_sampled_tokens == 20


def test_the_picture_of_a_question_is_shared_by_its_samples():
    pictures: list[Picture] = []

    def script(request):
        pictures.append(request.prompt.pictures[0])
        return ANSWER

    rollout(ScriptedEngine(script), [question()], look=LOOK, num_samples=4)
    assert all(picture is pictures[0] for picture in pictures)


def test_without_stops_braces_and_tags_do_not_interrupt_the_model():
    text = r"\boxed{\frac{1}{2}} <answer>1/2</answer> and so on"
    (trajectory,) = stream(
        turns(text),
        questions=[Asked.of(question(), LOOK)],
        look=LOOK,
        num_samples=1,
        temperature=0.0,
        seed=0,
        stops=(),
    )
    assert trajectory.text == text
    assert trajectory.stop is StopReason.END_WITHOUT_ANSWER
