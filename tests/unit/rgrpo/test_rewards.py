import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import Look, RewardConfig
from models.objective_config import PROFILES
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


def test_a_prompt_that_left_no_room_for_a_word_is_unscored():
    assert score(trajectory("", stop=StopReason.CONTEXT_LIMIT), QUESTION, RewardConfig()) is None
    assert score(trajectory("<think>", stop=StopReason.CONTEXT_LIMIT), QUESTION, RewardConfig()).total == 0
    assert score(trajectory("", stop=StopReason.END_WITHOUT_ANSWER), QUESTION, RewardConfig()).total == 0


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


def test_the_released_rules_pay_less_to_a_wrong_answer_in_full_style():
    # Format 0.5 and length 0.1 of 1 + 0.5 + 0.5 + 0.1: its boxes earn beside a right answer only.
    assert reward_floor(PROFILES["released"].reward, Look()) == pytest.approx((0.6, 2.1))


RELEASED = PROFILES["released"].reward
OTHER_LOOK = '{"bbox_2d": [1, 2, 30, 41]}'
# The stretches of GOOD are "Look." and "It is K7.": 5 characters -> 0.05.
RELEASED_TABLE = {
    "right, one look": (trajectory(GOOD, (BOX,)), (1, 0.5, 0.5, 0.05)),
    "a wrong answer earns nothing for its box": (
        trajectory(GOOD.replace(">K7<", ">B2<"), (BOX,)),
        (0, 0.5, 0, 0.05),
    ),
    "a box that was refused is paid": (trajectory(GOOD, (REPEATED,)), (1, 0.5, 0.5, 0.05)),
    "a box without numbers is paid": (
        trajectory('<think>Look. {"bbox_2d": "all"}</think><answer>K7</answer>', (BAD,)),
        (1, 0.5, 0.5, 0.1),
    ),
    "one broken box takes all": (
        trajectory(f'<think>Look.{LOOK} And {{"bbox_2d": [1, 2}} so.</think><answer>K7</answer>', (BOX, BAD)),
        (1, 0.5, 0, 0.05),
    ),
    "a box under another name is broken": (
        trajectory(f'<think>Look.{LOOK} And {{"bbox": [1, 2]}} so.</think><answer>K7</answer>', (BOX, BAD)),
        (1, 0.5, 0, 0.05),
    ),
    "other objects do not matter": (
        trajectory(f"<think>Look.{LOOK} And {{x}} so.</think><answer>K7</answer>", (BOX,)),
        (1, 0.5, 0.5, 0.05),
    ),
    # "Look at it." and "It is K7." are 11 and 9 characters; nothing is between the two commands.
    "an empty stretch between two looks is none": (
        trajectory(f"<think>Look at it.{LOOK} {OTHER_LOOK} It is K7.</think><answer>K7</answer>", (BOX, BOX)),
        (1, 0.5, 0.5, 0.09),
    ),
    "nothing before the first look": (
        trajectory(f"<think>{LOOK} It is K7.</think><answer>K7</answer>", (BOX,)),
        (1, 0.5, 0.5, 0),
    ),
    "nothing after the last look": (
        trajectory(f"<think>Look at it. {LOOK}</think> <answer>K7</answer>", (BOX,)),
        (1, 0.5, 0.5, 0),
    ),
    # "a b c" is 5 characters; no think block is asked for.
    "white space is collapsed": (trajectory("a  b\n\n c <answer>K7</answer> \n"), (1, 0.5, 0, 0.05)),
    "text after the answer": (trajectory("a <answer>K7</answer> so"), (1, 0, 0, 0.01)),
    "two answers are one format": (
        trajectory("a<answer>B2</answer><answer>K7</answer>"),
        (1, 0.5, 0, 0.01),
    ),
    "truncated after an answer": (
        trajectory("a<answer>B2</answer>", stop=StopReason.TOKEN_LIMIT),
        (0, 0, 0, 0.01),
    ),
    "100 characters are capped at 0.10": (
        trajectory("x" * 100 + "<answer>K7</answer>"),
        (1, 0.5, 0, 0.1),
    ),
}


@pytest.mark.parametrize(("case", "expected"), RELEASED_TABLE.values(), ids=RELEASED_TABLE.keys())
def test_breakdown_by_the_rules_of_the_released_code(case, expected):
    found = score(case, QUESTION, RELEASED)
    assert (found.accuracy, found.format, found.validity, found.length) == pytest.approx(expected)


def test_a_rule_can_be_taken_alone():
    wrong = trajectory(GOOD.replace(">K7<", ">B2<"), (BOX,))
    found = score(wrong, QUESTION, RewardConfig(validity_needs_correct=True))
    assert (found.format, found.validity, found.length) == pytest.approx((1, 0, 0.015))
    assert score(wrong, QUESTION, RewardConfig(length_rule="shortest-stretch")).length == 0.005


PROSE = st.text("ab  \n.", max_size=12)
PIECES = st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "a", " ", "\n", LOOK])


@given(st.lists(PIECES, max_size=8).map("".join))
def test_the_lenient_format_is_an_answer_at_the_end(text):
    found = score(trajectory(text), QUESTION, RewardConfig(format_rule="ends-with-answer")).format
    assert found == (re.search(r"<answer>.*</answer>\s*\Z", text, re.DOTALL) is not None)


@given(st.lists(PROSE, min_size=1, max_size=4))
def test_the_shortest_stretch_is_that_of_the_parts_that_were_joined(stretches):
    lengths = [len(" ".join(stretch.split())) for stretch in stretches]
    kept = [n for place, n in enumerate(lengths) if n or place in (0, len(lengths) - 1)]
    config = RewardConfig(length_rule="shortest-stretch", length_per_character=1, length_cap=1000)
    text = f"<think>{LOOK.join(stretches)}</think><answer>K7</answer>"
    assert score(trajectory(text), QUESTION, config).length == min(kept)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=4))
def test_parsed_boxes_count_once_and_only_if_all_are_sound(boxes):
    commands = [json.dumps({"bbox_2d": [n]}) if sound else f'{{"bbox_2d": [{n}}}' for n, sound in boxes]
    config = RewardConfig(validity_rule="parsed", validity=1, validity_cap=1000)
    found = score(trajectory(f"<think>{' and '.join(commands)}"), QUESTION, config).validity
    assert found == (len({n for n, _ in boxes}) if all(sound for _, sound in boxes) else 0)


@pytest.mark.parametrize("profile", PROFILES)
@given(
    st.lists(PIECES, max_size=10).map("".join),
    st.sampled_from([(), (BOX,), (BAD, BOX, BOX)]),
    st.sampled_from([stop for stop in StopReason if not stop.is_our_failure]),
)
def test_no_part_of_any_profile_leaves_its_bounds(profile, text, events, stop):
    config = PROFILES[profile].reward
    found = score(trajectory(text, events, stop), QUESTION, config)
    if stop is StopReason.CONTEXT_LIMIT and not text:  # it was never asked
        assert found is None
        return
    assert found.accuracy in (0, config.accuracy)
    assert found.format in ((0,) if stop.is_truncated else (0, config.format))
    assert 0 <= found.validity <= config.validity_cap
    assert 0 <= found.length <= config.length_cap
    if config.validity_needs_correct and not found.accuracy:
        assert found.validity == 0
