import math

import pytest

from models.errors import GuardError
from models.guard_config import GuardsConfig
from models.rgrpo.guards import CROP_GAIN, Guards, limits, steps_so_far

HEALTHY = {
    "rgrpo/crops_per_trajectory": 1.0,
    "rgrpo/all_wrong_moving_share": 0.1,
    "rgrpo/truncated_share": 0.0,
    "rgrpo/entropy": 0.4,
    "rgrpo/box_share": 0.03,
}
CONFIG = GuardsConfig(window=3, probe_window=2)


def watch(name, values, *, config=CONFIG, beside=None):
    """The step at which the guards speak, and what they say; None when they never do."""
    guards = Guards(config)
    for step, value in enumerate(values, start=1):
        try:
            guards.check(step, {**HEALTHY, **(beside or {}), name: value})
        except GuardError as error:
            return step, str(error)
    return None


def test_a_healthy_run_is_left_alone():
    assert watch("rgrpo/reward", [1.0] * 50) is None


@pytest.mark.parametrize(
    ("name", "values", "step", "setting"),
    [
        # Crops fall to zero: the mean of three is below 0.05 at the third step without any.
        ("rgrpo/crops_per_trajectory", [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 6, "min_crops"),
        (CROP_GAIN, [0.6, 0.4, 0.01, 0.02], 4, "min_crop_gain"),
        ("rgrpo/all_wrong_moving_share", [0.1, 0.9, 0.9, 0.9], 4, "max_all_wrong_share"),
        ("rgrpo/truncated_share", [0.0, 0.6, 0.6, 0.6], 4, "max_truncated_share"),
        ("rgrpo/entropy", [0.4, 0.001, 0.001, 0.001], 4, "min_entropy"),
        ("rgrpo/entropy", [0.4, 5.0, 5.0], 3, "max_entropy"),
        # (0 + 0.02 + 0.14) / 3 = 0.053
        ("rgrpo/stale_kl", [0.0, 0.02, 0.14], 3, "max_stale_kl"),
        # The first window's mean is 0.03; (0.03 + 0.09 + 0.18) / 3 = 0.1 is 3.3 times that.
        ("rgrpo/box_share", [0.03, 0.03, 0.03, 0.09, 0.18], 5, "max_box_drift"),
        ("rgrpo/box_share", [0.03, 0.03, 0.03, 0.009, 0.009, 0.009], 6, "max_box_drift"),
        # Boxes of 48 x 32 pixels that become 53 x 37 and are magnified to 12 tokens instead of 6.
        ("rgrpo/box_rounding", [0.8, 0.8, 0.8, 1.0, 1.0, 1.0], 6, "max_rounding_gain"),
    ],
)
def test_each_guard_speaks_at_its_step_and_names_its_setting(name, values, step, setting):
    found, said = watch(name, values)
    assert found == step
    assert said.startswith(f"Step {step}: ")
    assert f"rgrpo.guards.{setting}." in said
    assert name in said


@pytest.mark.parametrize("name", ["rgrpo/crops_per_trajectory", CROP_GAIN])
def test_what_a_policy_never_had_it_cannot_lose(name):
    """R-GRPO from a base that never looked."""
    assert watch(name, [0.0] * 20) is None


def test_a_policy_that_learned_to_look_and_stops_again_is_paused():
    step, told = watch("rgrpo/crops_per_trajectory", [0.0] * 5 + [0.9] * 5 + [0.0] * 5)
    assert step > 10
    assert "at least 0.05, once it was so" in told


def test_a_probe_by_chance_does_not_bind_a_policy_whose_crops_never_helped():
    assert watch(CROP_GAIN, [0.0, 0.03, 0.03, 0.0, 0.0]) is None


def test_crops_that_came_to_help_beyond_doubt_must_go_on_to():
    """Twice the standard error of 2 x 32 questions is 0.18."""
    assert watch(CROP_GAIN, [0.0, 0.0, 0.18, 0.18, 0.0, 0.0]) is None
    step, told = watch(CROP_GAIN, [0.0, 0.0, 0.3, 0.3, 0.0, 0.0])
    assert step == 6
    assert "at least 0.02, where it began so or came to be by 0.18" in told


def test_boxes_that_lose_by_rounding_win_nothing():
    assert watch("rgrpo/box_rounding", [1.0] * 3 + [0.7] * 10) is None


def test_one_unlucky_probe_is_not_a_loss_of_sight():
    assert watch(CROP_GAIN, [0.1, 0.12, 0.0, 0.1, -0.02, 0.11]) is None


def test_one_bad_step_says_little():
    assert watch("rgrpo/truncated_share", [0.0, 0.0, 1.0, 0.0, 0.0]) is None


def test_a_policy_that_moves_as_it_should_is_left_alone_and_so_is_one_that_samples_its_own():
    """What a healthy run shows (docs/training.md), with one step far from it; and a run without overlap."""
    assert watch("rgrpo/stale_kl", [0.0, 0.003, 0.003, 0.14, 0.003, 0.003]) is None
    assert watch("rgrpo/mismatch_kl", [1.0] * 20) is None


def test_a_guard_says_what_else_may_be_changed():
    assert "change what is rewarded, or go on with" in watch("rgrpo/truncated_share", [1.0] * 3)[1]
    assert "lower rgrpo.learning_rate or turn rgrpo.overlap off" in watch("rgrpo/stale_kl", [1.0] * 3)[1]


@pytest.mark.parametrize("window", [6, 10, 19])
def test_a_mean_at_its_limit_is_within_it_however_it_was_rounded(window):
    """Ten times 0.8, over ten, is 0.8000000000000003 when it is added up so."""
    config = GuardsConfig(window=window, probe_window=window)
    for limit in limits(config):
        values = [limit.bound] * (3 * window)
        if limit.rule.looks_at == "mean":
            assert watch(limit.metric, values, config=config) is None, limit
            assert limit.judged(values), limit
        if limit.rule.binds != "always":
            assert watch(limit.metric, [*values, *[0.0] * window], config=config), limit


def test_every_limit_that_is_broken_is_named_at_once():
    """Else a run that is allowed one of them pauses at the same step for the next."""
    _, told = watch("rgrpo/truncated_share", [1.0] * 3, beside={"rgrpo/all_wrong_moving_share": 1.0})
    assert "rgrpo.guards.max_all_wrong_share" in told
    assert "rgrpo.guards.max_truncated_share" in told


def test_nothing_is_said_before_a_window_is_whole():
    assert watch("rgrpo/truncated_share", [1.0, 1.0]) is None


def test_guards_that_are_off_say_nothing():
    off = GuardsConfig(enabled=False)
    assert list(limits(off)) == []
    assert watch("rgrpo/truncated_share", [1.0] * 50, config=off) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_breaks_its_limit_at_once(value):
    """Also one that nothing else looks at: of rollouts that no update takes, or of the first step."""
    for name in ("rgrpo/entropy", "rgrpo/stale_kl"):
        for before in (0, 5):
            step, told = watch(name, [0.04] * before + [value])
            assert step == before + 1
            assert f"{name} came to {value}" in told


def test_a_step_without_probe_does_not_judge_the_last_probe_again():
    guards = Guards(CONFIG)
    for step in (1, 2):
        guards.check(step, {**HEALTHY, CROP_GAIN: 0.5})
    guards.check(3, {**HEALTHY, CROP_GAIN: 0.0})
    with pytest.raises(GuardError):
        guards.check(4, {**HEALTHY, CROP_GAIN: 0.0})
    guards.check(5, HEALTHY)


def test_a_resumed_run_remembers_the_steps_before_its_checkpoint():
    lines = [{"step": 0, "progress/done": 0.0}]
    lines += [{"step": step, "rgrpo/reward": 1.0, **HEALTHY} for step in (1, 2, 3)]
    # Steps 3 and 4 were taken by a try that was killed; the run goes on from step 3 as it was taken last.
    lines += [{"step": step, "rgrpo/reward": 1.0, "rgrpo/truncated_share": 0.9} for step in (3, 4)]
    earlier = steps_so_far(lines, 3)
    assert [line["step"] for line in earlier] == [1, 2, 3]
    guards = Guards(CONFIG, earlier)
    rule = r"came to 0\.6[0-9]*, and the rule is: mean over 3 steps at most 0\.5"
    with pytest.raises(GuardError, match=rule):
        guards.check(4, {**HEALTHY, "rgrpo/truncated_share": 0.9})


def test_the_worst_of_a_run_is_what_its_evidence_shows():
    by_setting = {limit.rule.setting: limit for limit in limits(CONFIG)}
    assert by_setting["max_truncated_share"].worst([0.0, 0.3, 0.6, 0.9, 0.0]) == pytest.approx(0.6)
    assert by_setting["min_crops"].worst([1.0, 1.0, 1.0, 0.4]) == pytest.approx(0.8)
    assert by_setting["max_box_drift"].worst([0.03, 0.03, 0.03, 0.03]) == pytest.approx(1.0)
    assert by_setting["max_entropy"].worst([0.1, 0.3]) == pytest.approx(0.2)  # no window is whole
    assert by_setting["max_stale_kl"].worst([]) is None  # without overlap
