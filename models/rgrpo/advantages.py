"""The advantage of each trajectory over its group, Eq. 1 of the paper.

Where the paper is silent:

1. ``std`` divides by M - 1, and ``eps`` is added to it (the published implementations agree on the first);
2. a group whose rewards are all equal has advantage exactly 0 instead of 0/0, and is flagged: its gradient is
   zero, so the trainer may leave it out before the forward pass;
3. a trajectory without a reward (we broke, not the model) takes no part: the mean and the deviation are those
   of the scored ones, and its own advantage is not a number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Rewards are sums of a few decimal constants: a smaller spread is rounding, not a difference.
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Advantages:
    """``values`` (B,) in the order of the rewards, NaN where unscored; ``has_spread`` (Q,) is False for a
    group that gives no gradient: equal rewards, or fewer than two scored."""

    values: np.ndarray
    has_spread: np.ndarray


def group_advantages(
    rewards: Sequence[float | None],
    *,
    group_size: int,
    scale: Literal["group", "batch", "none"] = "group",
    eps: float = 1e-4,
) -> Advantages:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within each group of ``group_size`` consecutive rewards.

    ``scale`` says which std divides: the group's (Eq. 1), that of all scored rewards, or none. A reward of
    None or NaN is unscored. Raises ValueError when the rewards are not whole groups of at least two.
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards in groups of {group_size}: a group compares at least 2 rollouts of one "
            "question, and every group must be whole."
        )
    table = np.array([math.nan if r is None else r for r in rewards], dtype=np.float64)
    groups = table.reshape(-1, group_size)
    spread = np.array([_has_spread(group) for group in groups], dtype=bool)
    batch_std = _std(table)
    values = np.full_like(groups, math.nan)
    for row, group in enumerate(groups):
        scored = ~np.isnan(group)
        if not spread[row]:
            values[row, scored] = 0.0
            continue
        divisor = {"group": _std(group) + eps, "batch": batch_std + eps, "none": 1.0}[scale]
        values[row, scored] = (group[scored] - group[scored].mean()) / divisor
    return Advantages(values.reshape(-1), spread)


def _has_spread(group: np.ndarray) -> bool:
    scored = group[~np.isnan(group)]
    return scored.size >= 2 and float(np.ptp(scored)) > _EQUAL


def _std(values: np.ndarray) -> float:
    scored = values[~np.isnan(values)]
    return float(np.std(scored, ddof=1)) if scored.size >= 2 else 0.0
