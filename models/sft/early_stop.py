"""Which check of a run was the best, and whether it is time to stop.

The checks are in ``metrics.jsonl``, so a run that goes on from a checkpoint finds them there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.config import EarlyStopMetric

# Of each metric: its name in metrics.jsonl, and 1 when more is better, -1 when less is.
_METRICS: Mapping[EarlyStopMetric, tuple[str, int]] = {
    "accuracy": ("sft/accuracy", 1),
    "validation_loss": ("sft/validation_loss", -1),
}


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found: the watched metric after ``step`` steps."""

    step: int
    value: float


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """The checks of a run so far, in order."""

    metric: EarlyStopMetric
    checks: tuple[Check, ...] = ()

    def seen(self, step: int, metrics: Mapping[str, Any]) -> "EarlyStop":
        """With one more check, if these metrics hold one that is a number; a step is checked once."""
        name, _ = _METRICS[self.metric]
        value = float(metrics.get(name, math.nan))
        if not math.isfinite(value) or any(check.step == step for check in self.checks):
            return self
        return EarlyStop(self.metric, (*self.checks, Check(step, value)))

    def resumed(self, lines: Iterable[Mapping[str, Any]], *, step: int) -> "EarlyStop":
        """With the checks of a metrics file, up to the step of the checkpoint that a run goes on from.

        Of a step that was taken again the last line counts: the one before is of a try that was lost.
        """
        name, _ = _METRICS[self.metric]
        last = {line["step"]: line for line in lines if line["step"] <= step and name in line}
        found = self
        for number in sorted(last):
            found = found.seen(number, last[number])
        return found

    @property
    def best(self) -> Check:
        """The first of the best checks. There must be one."""
        _, sign = _METRICS[self.metric]
        return max(self.checks, key=lambda check: (sign * check.value, -check.step))

    @property
    def is_at_its_best(self) -> bool:
        """True when the last check is the best one."""
        return bool(self.checks) and self.best == self.checks[-1]

    def is_over(self, patience: int) -> bool:
        """True when ``patience`` checks in a row brought nothing better; 0 never stops."""
        return bool(patience and self.checks) and _num_since(self.checks, self.best) >= patience

    def reason(self, *, stopped_at: int, num_steps: int) -> str:
        """Which step's model was kept, and why, for people."""
        best = self.best
        kept = f"kept the model of step {best.step}: {self.metric} {best.value:.4g} was the best of the run"
        if stopped_at >= num_steps:
            return kept
        since = _num_since(self.checks, best)
        return (
            f"{kept}; stopped at step {stopped_at} of {num_steps} after {since} checks without a better one"
        )


def _num_since(checks: Sequence[Check], best: Check) -> int:
    return len(checks) - 1 - checks.index(best)
