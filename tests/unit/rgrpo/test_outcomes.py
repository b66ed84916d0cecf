import math
from dataclasses import replace

import pytest
from PIL import Image

from models.config import Look, RGRPOConfig
from models.errors import TrainingError
from models.records import Question
from models.region import Box, Picture
from models.rgrpo.advantages import group_advantages
from models.rgrpo.outcomes import Outcome, batch_metrics, check_failures
from models.rundir import RunDir
from models.trajectory import BoxEvent, Prompt, Reward, StopReason, Trajectory, TurnError

RIGHT = Outcome(
    kind="read",
    stop=StopReason.ANSWERED,
    reward=Reward(accuracy=1, format=1, validity=0.5, length=0.02),
    num_crops=1,
    num_errors=0,
    num_tokens=10,
    log_likelihood=-5.0,
    box_shares=(0.04,),
    drifted=(False,),
)
WRONG = replace(RIGHT, reward=Reward(accuracy=0, format=1, validity=0.5, length=0.02))
LONGER = replace(
    RIGHT, box_shares=(0.02, 0.12), reward=Reward(accuracy=1, format=1, validity=0.5, length=0.05)
)
SHAPELESS = replace(WRONG, reward=Reward(accuracy=0, format=0, validity=0, length=0.02), num_crops=0)
CUT_OFF = replace(SHAPELESS, stop=StopReason.TOKEN_LIMIT, num_tokens=30, num_errors=2, log_likelihood=-35.0)
FAILED = replace(
    RIGHT, stop=StopReason.ENGINE_ERROR, reward=None, num_tokens=0, log_likelihood=0.0, detail="cache miss"
)


def metrics(*outcomes, group_size=2):
    rewards = [None if outcome.reward is None else outcome.reward.total for outcome in outcomes]
    advantages = group_advantages(rewards, group_size=group_size)
    return batch_metrics(outcomes, advantages, group_size=group_size)


def test_counts_of_four_groups():
    # Groups: right and wrong (moves); equal (no variance); differs in length only; all wrong, yet it moves.
    found = metrics(RIGHT, WRONG, RIGHT, RIGHT, RIGHT, LONGER, WRONG, SHAPELESS)
    assert found["rgrpo/zero_variance_share"] == 0.25
    assert found["rgrpo/length_only_share"] == 0.25
    assert found["rgrpo/all_wrong_share"] == 0.25
    assert found["rgrpo/all_wrong_moving_share"] == pytest.approx(1 / 3)
    assert found["rgrpo/unscored_share"] == 0


def test_means_by_hand():
    # Rewards 2.52, 1.52, 2.52 and 0.02: mean 6.58 / 4. Tokens 10 + 10 + 10 + 30 = 60, log-likelihood -50.
    found = metrics(RIGHT, WRONG, RIGHT, CUT_OFF)
    assert found["rgrpo/reward"] == pytest.approx(6.58 / 4)
    assert found["rgrpo/reward/accuracy"] == 0.5
    assert found["rgrpo/reward/format"] == 0.75
    assert found["rgrpo/correct/read"] == 0.5
    assert found["rgrpo/crops_per_trajectory"] == 0.75
    assert found["rgrpo/errors_per_trajectory"] == 0.5
    assert found["rgrpo/tokens_per_trajectory"] == 15
    assert found["rgrpo/truncated_share"] == 0.25
    assert found["rgrpo/entropy"] == pytest.approx(50 / 60)


def test_the_size_of_boxes_is_a_mean_over_boxes():
    # Shares 0.04, 0.02 and 0.12.
    assert metrics(RIGHT, replace(RIGHT, box_shares=(0.02, 0.12)))["rgrpo/box_share"] == pytest.approx(0.06)
    # A model that never looks has no box: a mean of nothing once made the whole result unreadable.
    blind = replace(RIGHT, box_shares=())
    assert "rgrpo/box_share" not in metrics(blind, blind)


def test_groups_of_equal_rewards_do_not_hide_that_nobody_is_right():
    found = metrics(WRONG, WRONG, WRONG, WRONG, WRONG, SHAPELESS)
    assert found["rgrpo/all_wrong_share"] == pytest.approx(1 / 3)
    assert found["rgrpo/all_wrong_moving_share"] == 1.0
    assert "rgrpo/all_wrong_moving_share" not in metrics(RIGHT, RIGHT)  # a share of nothing


def test_what_boxes_win_by_rounding():
    # A tenth of each side is magnified twice. 48 x 32 pixels: 96 x 64 become 84 x 56, three by two tokens;
    # 53 x 37: 106 x 74 become 112 x 84, four by three.
    boxes = [Box(0.0, 0.0, width, height, space="seen") for width, height in ((48.0, 32.0), (53.0, 37.0))]
    events = (*map(BoxEvent, boxes), BoxEvent(boxes[0], TurnError.REPEATED_BOX))
    image = Image.new("RGB", (1400, 980))
    trajectory = Trajectory("q", 0, Prompt("?", (Picture.of(image),)), (), events, StopReason.ANSWERED)
    look = Look(min_pixels=3136, max_pixels=1400 * 980)
    outcome = Outcome.of(trajectory, Question.of_image(image, "?"), look=look)
    won = (84 * 56 / (96 * 64), 112 * 84 / (106 * 74))
    assert outcome.box_roundings == pytest.approx(won)
    assert metrics(outcome, outcome)["rgrpo/box_rounding"] == pytest.approx(sum(won) / 2)


def test_unscored_trajectories_count_neither_as_right_nor_as_wrong():
    found = metrics(RIGHT, FAILED, RIGHT, WRONG)
    assert found["rgrpo/reward/accuracy"] == pytest.approx(2 / 3)
    assert found["rgrpo/unscored_share"] == 0.25
    assert found["rgrpo/zero_variance_share"] == 0.5  # one scored trajectory has nothing to compare with


def test_boxes_that_say_the_same_again_overlap():
    # Image 1: [0, 0, 4, 4], then [2, 0, 6, 4]: 8 of 24 pixels. Refused boxes and other images are no pair.
    boxes = [Box(*map(float, corners), space="seen") for corners in ((0, 0, 4, 4), (2, 0, 6, 4))]
    refused = BoxEvent(boxes[0], TurnError.REPEATED_BOX)
    events = (BoxEvent(boxes[0]), refused, BoxEvent(boxes[0], image=2), BoxEvent(boxes[1]))
    pictures = (Picture.of(Image.new("RGB", (28, 28))),) * 2
    trajectory = Trajectory("q", 0, Prompt("?", pictures), (), events, StopReason.ANSWERED)
    outcome = Outcome.of(trajectory, Question.of_image(Image.new("RGB", (28, 28)), "?"), look=Look())
    assert outcome.box_overlaps == pytest.approx((1 / 3,))
    assert metrics(outcome, replace(RIGHT, box_overlaps=(1.0,)))["rgrpo/box_overlap"] == pytest.approx(2 / 3)
    assert "rgrpo/box_overlap" not in metrics(RIGHT, RIGHT)


def test_drift_is_a_share_of_spans():
    # One of two spans, none of one, both of two: 3 of 5.
    drifted = ((True, False), (False,), (True, True))
    found = metrics(*(replace(RIGHT, drifted=each) for each in drifted), group_size=3)
    assert found["rgrpo/retokenisation_drift"] == pytest.approx(0.6)


def test_kinds_are_reported_apart():
    found = metrics(RIGHT, replace(WRONG, kind="add"), RIGHT, replace(RIGHT, kind="add"))
    assert found["rgrpo/correct/read"] == 1
    assert found["rgrpo/correct/add"] == 0.5


def test_a_kind_may_have_any_name(tmp_path):
    found = metrics(replace(RIGHT, kind="Chart/Bar"), replace(WRONG, kind="chart bar"))
    assert {value for name, value in found.items() if "correct/" in name} == {0.0, 1.0}
    RunDir(tmp_path).log(1, found)  # refuses names that the tracker would


def test_a_batch_that_failed_whole_has_no_means():
    assert math.isnan(metrics(FAILED, FAILED)["rgrpo/reward"])


def test_too_many_failures_of_ours_stop_the_run_and_say_why():
    config = RGRPOConfig(max_failed_share=0.25)
    check_failures([RIGHT, RIGHT, WRONG, FAILED], config)
    with pytest.raises(TrainingError, match=r"2 of 4 .* engine_error, cache miss"):
        check_failures([RIGHT, FAILED, WRONG, FAILED], config)
