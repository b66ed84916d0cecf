"""The guards of a run: limits on how R-GRPO goes, looked at after every step; a broken one pauses it.

Reward may rise while the model gets worse: it stops to look, pads its boxes, collapses, or learns form from
groups in which nobody was right. Each of these has a number that shows it early. A guard looks at the mean of
the last ``window`` steps (``probe_window`` probes), for one says little; a value that is no number breaks it
at once. Two kinds of limit exist: what must never be (a share of cut-off trajectories, the entropy), and what
a policy must not lose, which binds only where it had it: a base that never looked cannot stop to look.

The mismatch between engine and trainer is a guard too, in :mod:`models.rgrpo.update`: it must be seen before
the optimiser's step. What is measured here is deterministic, so a run that goes on from a checkpoint under
other limits repeats its steps to the letter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Any, Literal, NamedTuple

import numpy as np

from models.errors import GuardError
from models.guard_config import GuardsConfig

CROP_GAIN = "rgrpo/probe/crop_gain"

# The mean of ten values at a limit may come out a little beyond it: so much is rounding.
_ROUNDING = 1e-9


class Rule(NamedTuple):
    """What a field of :class:`GuardsConfig` limits (from the side in its name), and what breaking it means.

    ``binds``: always; only if the run ``began`` within it, or came to be beyond all doubt; or as soon as a
    window was within it (``once``).
    ``looks_at``: a window's mean, how many times it ``grew`` since the first window's, or how many times it
    ``changed``, up or down.
    ``is_probed``: it has a value per probe, not per step. ``remedy``: what may be changed besides the limit.
    """

    setting: str
    metric: str
    danger: str
    binds: Literal["always", "began", "once"] = "always"
    looks_at: Literal["mean", "grew", "changed"] = "mean"
    is_probed: bool = False
    remedy: str = "change what is rewarded"


_RULES = (
    Rule("min_crops", "rgrpo/crops_per_trajectory", "the policy has stopped to look", binds="once"),
    Rule(
        "min_crop_gain",
        CROP_GAIN,
        "crops no longer help: blank ones give the same answers",
        # Not "once": a few questions are within it now and then where crops never helped.
        binds="began",
        is_probed=True,
    ),
    Rule(
        "max_all_wrong_share",
        # Not of all groups: those of equal rewards are many where nobody is right, and would hide it.
        "rgrpo/all_wrong_moving_share",
        "most groups that teach at all teach form, without one right answer",
    ),
    Rule("max_truncated_share", "rgrpo/truncated_share", "most trajectories never end"),
    Rule("min_entropy", "rgrpo/entropy", "the policy has collapsed: its rollouts are all alike"),
    Rule("max_entropy", "rgrpo/entropy", "the policy falls apart"),
    Rule(
        "max_stale_kl",
        "rgrpo/stale_kl",
        "the policy outruns its rollouts: an update takes it too far from the one that sampled the next ones",
        remedy="lower rgrpo.learning_rate or turn rgrpo.overlap off, which makes another run",
    ),
    Rule(
        "max_box_drift",
        "rgrpo/box_share",
        "the size of boxes has drifted: look whether they still enclose what is asked about",
        looks_at="changed",
    ),
    Rule(
        "max_rounding_gain",
        "rgrpo/box_rounding",
        "boxes take sizes that win pixels when they are rounded: that is arithmetic, not sight",
        looks_at="grew",
    ),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A rule with its bound; means are over ``window`` steps, and uncertain by ``error``, twice their
    standard error, where they are of few answers."""

    rule: Rule
    bound: float
    window: int
    error: float = 0.0

    @property
    def metric(self) -> str:
        """What is looked at."""
        return self.rule.metric

    @property
    def is_upper(self) -> bool:
        """Whether more than the bound breaks it; else less does."""
        return self.rule.setting.startswith("max_")

    def __str__(self) -> str:
        what = {"mean": "mean", "grew": "growth of its mean", "changed": "change of its mean"}[
            self.rule.looks_at
        ]
        steps = f"{what} over {self.window} {'probes' if self.rule.is_probed else 'steps'} "
        where = {
            "always": "",
            "began": f", where it began so or came to be by {self.error:.2g}",
            "once": ", once it was so",
        }[self.rule.binds]
        return f"{steps}at {'most' if self.is_upper else 'least'} {self.bound:g}{where}"

    def judged(self, values: Sequence[float]) -> list[float]:
        """What the limit looks at, a number per window; nothing while no window is whole.

        ``values`` are the metric's, one per step that has it, in order.
        """
        means = _means(values, self.window)
        if self.rule.binds == "once":
            means = list(dropwhile(lambda mean: not self.allows(mean), means))
        if self.rule.binds == "began" and means and not self.allows(means[0]):
            means = list(dropwhile(lambda mean: not self._surely_allows(mean), means))
        if not means:
            return []
        if self.rule.looks_at == "mean":
            return means
        growth = [mean / means[0] for mean in means if mean > 0 and means[0] > 0]
        return growth if self.rule.looks_at == "grew" else [max(times, 1 / times) for times in growth]

    def worst(self, values: Sequence[float]) -> float | None:
        """The number of a whole run that is furthest on the wrong side; None where there is none. Of a run
        shorter than a window it is made of all there is."""
        limit = replace(self, window=min(self.window, max(1, len(values))))
        return (max if self.is_upper else min)(limit.judged(values), default=None)

    def allows(self, value: float) -> bool:
        """Whether a value is on the right side; the bound itself is, however a mean was rounded."""
        return self._beyond(value) <= _ROUNDING

    def _surely_allows(self, value: float) -> bool:
        return self._beyond(value) <= -self.error

    def _beyond(self, value: float) -> float:
        return value - self.bound if self.is_upper else self.bound - value


def limits(config: GuardsConfig) -> list[Limit]:
    """The limits of a run, none when the guards are off."""
    if not config.enabled:
        return []
    # Of the difference of two shares, whose variance is at most 1 / 4 each.
    error = 2 * (2 * 0.25 / (config.probe_window * config.probe_questions)) ** 0.5
    return [
        Limit(
            rule,
            bound=getattr(config, rule.setting),
            window=config.probe_window if rule.is_probed else config.window,
            error=error if rule.is_probed else 0.0,
        )
        for rule in _RULES
    ]


class Guards:
    """The guards over one run; ``earlier`` are the metrics of the steps that a resumed run goes on from."""

    def __init__(self, config: GuardsConfig, earlier: Iterable[Mapping[str, float]] = ()) -> None:
        self._limits = limits(config)
        self._probe_every = config.probe_every
        self._values: dict[str, list[float]] = {limit.metric: [] for limit in self._limits}
        for metrics in earlier:
            self._note(metrics)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note a step's metrics. Raises GuardError that names every limit that is broken."""
        self._note(metrics)
        if broken := dict(self._broken(metrics)):
            num_steps = max(broken.values())
            raise GuardError(f"Step {step}: {' Besides, '.join(broken)}", num_steps=num_steps)

    def _broken(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, int]]:
        """What is wrong, and over how many steps."""
        for limit in self._limits:
            # Only a step that has the metric can break its limit.
            if limit.metric not in metrics:
                continue
            is_number = np.isfinite(metrics[limit.metric])
            found = limit.judged(self._values[limit.metric])[-1:] if is_number else [metrics[limit.metric]]
            if not is_number or not all(map(limit.allows, found)):
                num_steps = limit.window * (self._probe_every if limit.rule.is_probed else 1)
                yield (
                    f"{limit.rule.danger}. {limit.metric} came to {found[0]:.4g}, and the rule "
                    f"is: {limit}. Look at the rollouts of this step; {limit.rule.remedy}, or go on with "
                    f"another rgrpo.guards.{limit.rule.setting}.",
                    num_steps if is_number else 1,
                )

    def _note(self, metrics: Mapping[str, float]) -> None:
        for name in self._values.keys() & metrics.keys():
            if np.isfinite(metrics[name]):
                self._values[name].append(metrics[name])


def require_agreement(mismatch_kl: float, *, limit: float) -> None:
    """Raise GuardError when engine and trainer, with the same weights, are further apart than ``limit``, nats
    per token."""
    if not mismatch_kl <= limit:  # a log-prob of the engine that is no number fails too
        raise GuardError(
            f"Engine and trainer disagree: KL {mismatch_kl:.4g} nats per token, at most {limit:g} is "
            "allowed. Nothing was trained. Stale weights or caches in the engine, another temperature, or a "
            "shifted picture are the usual causes; compare both on one trajectory of rollouts/, or go on "
            "with another rgrpo.max_mismatch_kl."
        )


def steps_so_far(lines: Iterable[Mapping[str, Any]], step: int) -> list[Mapping[str, float]]:
    """The metrics of each step up to ``step``, in order; of a step that was taken twice its last line."""
    found = {line["step"]: line for line in lines if line["step"] <= step and "rgrpo/reward" in line}
    return [found[number] for number in sorted(found)]


def _means(values: Sequence[float], window: int) -> list[float]:
    """The mean of every ``window`` values in a row."""
    if len(values) < window:
        return []
    return np.convolve(values, np.full(window, 1 / window), mode="valid").tolist()
