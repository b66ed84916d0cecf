import pytest

from models.config import Look, RewardConfig
from models.records import Question
from models.region import Box
from models.rgrpo.rewards import reward_floor, score
from models.trajectory import BoxEvent, Prompt, SampledSpan, StopReason, TextSpan, Trajectory, TurnError

QUESTION = Question(
    id="q",
    source="s",
    split="train",
    image_bytes=b"",
    image_sha256="",
    width=1,
    height=1,
    text="?",
    answers=("K7",),
)
LOOK = '{"bbox_2d": [1, 2, 30, 40]}'
BOX = BoxEvent(Box(1, 2, 30, 40, "seen"))
REPEATED = BoxEvent(Box(1, 2, 30, 40, "seen"), TurnError.REPEATED_BOX)
BAD = BoxEvent(None, TurnError.BAD_JSON)


def trajectory(text, events=(), stop=StopReason.ANSWERED, told=""):
    spans = (SampledSpan(text),) if not told else (SampledSpan(text), TextSpan(told))
    return Trajectory("q", 0, Prompt("?"), spans, events, stop)


# The reasoning of the first rows is "Look. It is K7." less the crop command: 15 characters -> 0.015.
GOOD = f"<think>Look.{LOOK} It is K7.</think><answer>K7</answer>"
TABLE = {
    "right, one look": (trajectory(GOOD, (BOX,)), (1, 1, 0.5, 0.015)),
    "wrong answer earns all but accuracy": (
        trajectory(GOOD.replace(">K7<", ">B2<"), (BOX,)),
        (0, 1, 0.5, 0.015),
    ),
    "two looks are capped at 0.5": (trajectory(GOOD, (BOX, BOX)), (1, 1, 0.5, 0.015)),
    "no look": (trajectory("<think>Easy.</think><answer>k7.</answer>"), (1, 1, 0, 0.005)),
    "refused boxes earn nothing": (trajectory(GOOD, (REPEATED, BAD)), (1, 1, 0, 0.015)),
    "no think block": (trajectory("<answer>K7</answer>"), (1, 0, 0, 0)),
    "two answers are no format, the last counts": (
        trajectory("<think>a</think><answer>B2</answer><answer>K7</answer>"),
        (1, 0, 0, 0.001),
    ),
    "truncated": (trajectory("<think>abcde", stop=StopReason.TOKEN_LIMIT), (0, 0, 0, 0.005)),
    "cut off at the crop limit keeps its box": (
        trajectory(f"<think>ab{LOOK}", (BOX,), stop=StopReason.CROP_LIMIT),
        (0, 0, 0.5, 0.002),
    ),
    "300 characters are capped at 0.25": (
        trajectory("<think>" + "x" * 300, stop=StopReason.TOKEN_LIMIT),
        (0, 0, 0, 0.25),
    ),
    "ended without answer": (
        trajectory("<think>ab</think>", stop=StopReason.END_WITHOUT_ANSWER),
        (0, 0, 0, 0.002),
    ),
    "what we told it is not read": (
        trajectory("<think>ab", (BAD,), StopReason.END_WITHOUT_ANSWER, told="</think><answer>K7</answer>"),
        (0, 0, 0, 0.002),
    ),
}


@pytest.mark.parametrize(("case", "expected"), TABLE.values(), ids=TABLE.keys())
def test_breakdown(case, expected):
    found = score(case, QUESTION, RewardConfig())
    assert (found.accuracy, found.format, found.validity, found.length) == pytest.approx(expected)
    assert found.total == pytest.approx(sum(expected))


@pytest.mark.parametrize("stop", [stop for stop in StopReason if stop.is_our_failure])
def test_our_failure_is_unscored_not_zero(stop):
    assert score(trajectory(GOOD, (BOX,), stop=stop), QUESTION, RewardConfig()) is None


@pytest.mark.parametrize("stop", [stop for stop in StopReason if stop.is_truncated])
def test_a_truncated_trajectory_has_no_format_reward(stop):
    assert score(trajectory(GOOD, (BOX,), stop=stop), QUESTION, RewardConfig()).format == 0


def test_weights_come_from_the_configuration():
    found = score(
        trajectory(GOOD, (BOX, BOX)),
        QUESTION,
        RewardConfig(accuracy=2, format=0.5, validity=0.1, length_cap=0),
    )
    assert (found.accuracy, found.format, found.validity, found.length) == pytest.approx((2, 0.5, 0.2, 0))


def test_the_trajectory_of_another_question_is_refused():
    other = Trajectory("other", 0, Prompt("?"), (), (), StopReason.ANSWERED)
    with pytest.raises(ValueError, match="other"):
        score(other, QUESTION, RewardConfig())


def test_with_the_papers_weights_a_wrong_answer_in_full_style_earns_most_of_a_right_one():
    assert reward_floor(RewardConfig(), Look()) == (1.75, 2.75)


def test_the_floor_has_no_box_where_no_crop_is_allowed():
    assert reward_floor(RewardConfig(), Look(max_crops=0)) == (1.25, 2.25)
