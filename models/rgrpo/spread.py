"""What the advantages of a run are made of: right against wrong, or style among equally good answers.

    python -m models.rgrpo.spread RUN_DIR [--profile NAME ...]

Eq. 1 divides by the group's own standard deviation. Where all answers of a group are right, or all wrong,
only format, boxes and length are left to differ, however little, and the division makes advantages of full
size of it. This reads the stored rollouts of a run, counts such groups, and says how large their advantages
are under each ``objective.advantage_scale``. With ``--profile`` also as if that profile had rewarded them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from models.config import RewardConfig, RGRPOConfig
from models.errors import ConfigError, VLMR3Error
from models.objective_config import PROFILES
from models.rgrpo.advantages import group_advantages
from models.rgrpo.rewards import differ_in_length_only, reward_of
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import Reward
from models.transcripts import Transcript, read_transcripts

Scale = Literal["group", "batch", "none"]
SCALES: tuple[Scale, ...] = ("group", "batch", "none")
Kind = Literal["equal", "mixed", "all right", "all wrong"]
# The rewards of one step's rollouts in group order; None where we broke.
Step = Sequence[Reward | None]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of rollouts: ``equal`` rewards; a ``mixed`` one of right and wrong answers; ``all right`` or
    ``all wrong``, yet with a gradient. ``sizes`` are the absolute advantages of the scored ones."""

    kind: Kind
    is_length_only: bool
    sizes: np.ndarray

    @property
    def is_style(self) -> bool:
        """Whether what moves it is not the answer."""
        return self.kind in ("all right", "all wrong")


def groups_of(steps: Sequence[Step], *, group_size: int, scale: Scale, eps: float) -> list[Group]:
    """All groups of ``group_size`` consecutive rewards; each step is a batch of its own."""
    return [group for step in steps for group in _groups_of(step, group_size, scale, eps)]


def _groups_of(step: Step, group_size: int, scale: Scale, eps: float) -> Iterator[Group]:
    totals = [None if reward is None else reward.total for reward in step]
    advantages = group_advantages(totals, group_size=group_size, scale=scale, eps=eps)
    values = advantages.values.reshape(-1, group_size)
    for row, has_spread in enumerate(advantages.has_spread):
        members = step[row * group_size : (row + 1) * group_size]
        scored = [reward for reward in members if reward is not None]
        sizes = np.abs(values[row][~np.isnan(values[row])])
        yield Group(_kind(scored, bool(has_spread)), differ_in_length_only(scored), sizes)


def _kind(scored: Sequence[Reward], has_spread: bool) -> Kind:
    right = {reward.accuracy > 0 for reward in scored}
    if not has_spread:
        return "equal"
    if len(right) == 2:
        return "mixed"
    return "all right" if right == {True} else "all wrong"


def table(steps: Sequence[Step], *, group_size: int, eps: float) -> str:
    """The counts and the sizes as text."""
    found = {scale: groups_of(steps, group_size=group_size, scale=scale, eps=eps) for scale in SCALES}
    groups = found["group"]
    style = [group for group in groups if group.is_style]
    kinds = [group.kind for group in groups]
    num_length_only = sum(group.is_length_only for group in style)
    counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in ("mixed", "all right", "all wrong", "equal"))
    lines = [
        f"{len(groups)} groups of {group_size}: {counts}; of the {len(style)} all right or all wrong, "
        f"{num_length_only} differ in length only",
        f"{'mean |advantage|':<18}{'mixed':>8}{'style':>8}{'length only':>13}{'style / all':>13}",
    ]
    for scale, groups in found.items():
        mixed = _sizes(group for group in groups if group.kind == "mixed")
        style_sizes = _sizes(group for group in groups if group.is_style)
        length_only = _sizes(group for group in groups if group.is_style and group.is_length_only)
        share = style_sizes.sum() / max(mixed.sum() + style_sizes.sum(), 1e-12)
        lines.append(
            f"scale {scale:<12}{_mean(mixed):>8}{_mean(style_sizes):>8}{_mean(length_only):>13}{share:>13.1%}"
        )
    return "\n".join(lines)


def _sizes(groups: Iterator[Group]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(group.sizes for group in groups)])


def _mean(sizes: np.ndarray) -> str:
    return f"{sizes.mean():.3f}" if sizes.size else "-"


def regraded(transcripts: Sequence[Transcript], config: RewardConfig) -> list[Reward | None]:
    """What a reward configuration gives to trajectories whose correctness is known from their reward."""
    return [
        None if one.reward is None else reward_of(one, is_correct=one.reward.accuracy > 0, config=config)
        for one in transcripts
    ]


def _config(run_dir: Path) -> RGRPOConfig:
    try:
        return RGRPORun.model_validate_json(RunDir.open(run_dir).config_text()).rgrpo
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{run_dir} is not the run directory of a stage rgrpo: {error}") from error


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory of stage rgrpo")
    parser.add_argument(
        "--profile", action="append", default=[], choices=list(PROFILES), help="reward them so, too"
    )
    given = parser.parse_args(arguments)
    try:
        config = _config(given.run_dir)
        if not config.reward.accuracy:
            raise ConfigError("The run's accuracy reward is 0: its rollouts do not say which are right.")
        files = sorted((given.run_dir / "rollouts").glob("step-*.parquet"))
        if not files:
            raise ConfigError(
                f"{given.run_dir} holds no rollouts/step-*.parquet: give it a step to write them."
            )
        steps = [read_transcripts(file) for file in files]
    except VLMR3Error as error:
        print(error, file=sys.stderr)
        return 2
    graded = {"as rewarded in the run": [[one.reward for one in step] for step in steps]}
    for name in given.profile:
        graded[f"rewards of profile {name}"] = [regraded(step, PROFILES[name].reward) for step in steps]
    for title, rewards in graded.items():
        found = table(rewards, group_size=config.group_size, eps=config.objective.advantage_eps)
        print(f"{title}: {found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
