import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rgrpo.advantages import group_advantages


def test_eq_1_by_hand():
    # r = 1, 2, 3: mean 2, std (ddof 1) = sqrt((1 + 0 + 1) / 2) = 1, so A = -1, 0, 1 up to eps.
    found = group_advantages([1.0, 2.0, 3.0], group_size=3, eps=1e-12)
    np.testing.assert_allclose(found.values, [-1, 0, 1], atol=1e-9)


def test_a_lone_winner_of_five_gets_1_789():
    # r = 1, 0, 0, 0, 0: mean 0.2, std = sqrt((0.64 + 4 x 0.04) / 4) = 0.4472, so A_1 = 0.8 / 0.4472 = 1.789.
    found = group_advantages([1.0, 0, 0, 0, 0], group_size=5, eps=1e-12)
    assert found.values[0] == pytest.approx(1.7888543, abs=1e-6)


def test_equal_rewards_give_exactly_zero_and_are_flagged():
    # 0.1 + 0.2 is not 0.3 in floating point; the difference is rounding and must not become an advantage.
    found = group_advantages([0.1 + 0.2, 0.3, 0.3, 1.0, 0.0, 0.0], group_size=3)
    assert found.values[:3].tolist() == [0.0, 0.0, 0.0]
    assert found.has_spread.tolist() == [False, True]


def test_unscored_rollouts_take_no_part():
    # Scored are 0 and 2: mean 1, std sqrt(2), so A = -1 / sqrt(2), +1 / sqrt(2). With a 0 in place of None
    # the mean would be 2/3.
    found = group_advantages([0.0, None, 2.0], group_size=3, eps=1e-12)
    assert math.isnan(found.values[1])
    np.testing.assert_allclose(found.values[[0, 2]], [-math.sqrt(0.5), math.sqrt(0.5)], atol=1e-9)


def test_one_scored_rollout_has_nothing_to_compare_with():
    found = group_advantages([1.0, None, float("nan")], group_size=3)
    assert found.values[0] == 0.0
    assert not found.has_spread[0]


def test_batch_and_no_scale():
    # Groups (0, 2) and (0, 6): means 1 and 3. All four: mean 2, std = sqrt((4 + 0 + 4 + 16) / 3) = sqrt(8).
    rewards = [0.0, 2.0, 0.0, 6.0]
    batch = group_advantages(rewards, group_size=2, scale="batch", eps=1e-12)
    np.testing.assert_allclose(batch.values, np.array([-1, 1, -3, 3]) / math.sqrt(8), atol=1e-9)
    none = group_advantages(rewards, group_size=2, scale="none")
    assert none.values.tolist() == [-1, 1, -3, 3]


@pytest.mark.parametrize(("count", "group_size"), [(5, 2), (4, 1)])
def test_groups_must_be_whole_and_of_at_least_two(count, group_size):
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages([0.0] * count, group_size=group_size)


@given(
    st.lists(st.floats(0, 3), min_size=4, max_size=4),
    st.floats(0.5, 4),
    st.floats(-2, 2),
)
def test_advantages_ignore_shift_and_scale_and_sum_to_zero(rewards, factor, shift):
    if np.ptp(rewards) < 1e-3:
        return
    found = group_advantages(rewards, group_size=4, eps=1e-12).values
    moved = group_advantages([factor * r + shift for r in rewards], group_size=4, eps=1e-12).values
    np.testing.assert_allclose(found, moved, atol=1e-5)
    assert found.sum() == pytest.approx(0, abs=1e-6)
