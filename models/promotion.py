"""The promotion gate: a plain function from an evaluation and its evidence to a decision with reasons.

Policy, in the order of the reasons:

1. every piece of evidence is present;
2. challenger and baseline answered the same questions, at least ``min_questions`` of them, and none of the
   challenger's rows was broken by us;
3. the lower end of the paired-bootstrap 95 % interval of the gain in greedy accuracy is above ``min_gain``;
4. the share of attempts in which the challenger broke the protocol is at most ``max_protocol_error_rate``.

The baseline is the present champion; where there is none yet, the untrained base model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.config import PromotionConfig
from models.errors import ScoringError
from models.evaluation.results import Results

# What every version must carry before it may be promoted.
REQUIRED_EVIDENCE = (
    "data_digest",
    "validation_passed",
    "preset",
    "code_digest",
    "model_digest",
    "evaluation_digest",
    "licence",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the policy: what was found, and whether it is kept."""

    rule: str
    found: str
    kept: bool

    def __str__(self) -> str:
        return f"{'yes' if self.kept else 'NO'}: {self.rule} (found: {self.found})"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the challenger becomes champion, and every rule that was looked at."""

    promoted: bool
    baseline: str
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The rules that decided: those broken, or all of them when none is."""
        decisive = [check for check in self.checks if not check.kept] or list(self.checks)
        return tuple(str(check) for check in decisive)


def decide(
    results: Results,
    *,
    challenger: str,
    baseline: str,
    evidence: Mapping[str, str],
    config: PromotionConfig,
) -> Decision:
    """Judge the row ``challenger`` against the row ``baseline`` of one evaluation.

    Raises ScoringError when one of the two rows, or their comparison, was not measured: that is our
    fault, not a verdict on the model.
    """
    row = results.variant(challenger)
    comparison = results.comparison(challenger, baseline)
    if row is None or comparison is None:
        measured = [variant.name for variant in results.variants]
        raise ScoringError(
            f"The evaluation does not compare {challenger!r} with {baseline!r}, so nothing can be decided. "
            f"Measured rows: {measured}."
        )
    missing = [name for name in REQUIRED_EVIDENCE if not evidence.get(name)]
    gain = comparison.difference
    checks = (
        Check("all evidence is present", f"missing {missing}" if missing else "all of it", not missing),
        Check(
            f"at least {config.min_questions} paired questions",
            str(comparison.num_questions),
            comparison.num_questions >= config.min_questions,
        ),
        Check("every row was scored", f"{row.overall.num_unscored} unscored", row.overall.num_unscored == 0),
        Check(
            f"gain over {results.label(baseline)} is above {config.min_gain:+.3f} with 95 % confidence",
            f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            gain.low > config.min_gain,
        ),
        Check(
            f"protocol errors in at most {config.max_protocol_error_rate:.0%} of attempts",
            f"{row.overall.protocol_error_rate:.1%}",
            row.overall.protocol_error_rate <= config.max_protocol_error_rate,
        ),
    )
    return Decision(all(check.kept for check in checks), baseline, checks)
