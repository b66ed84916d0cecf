"""The verdict of the gate: a plain value, kept as JSON."""

import json
from dataclasses import asdict, dataclass

VERDICT = "verdict.json"


@dataclass(frozen=True, slots=True)
class ExpectationOutcome:
    """What one expectation came to. ``unexpected_count`` is the number of rows that break it.

    ``bounds`` say what was expected, ``observed`` what the set has, ``detail`` what was found instead.
    """

    name: str
    success: bool
    unexpected_count: int = 0
    example_ids: tuple[str, ...] = ()
    detail: str = ""
    bounds: str = ""
    observed: str = ""
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class ValidationVerdict:
    """Whether the set may be trained on, and why.

    ``suite_digest`` is the sha256 of the suite's file, ``data_digest`` that of the set's manifest.
    """

    passed: bool
    num_records: int
    expectations: tuple[ExpectationOutcome, ...]
    suite_digest: str = ""
    data_digest: str = ""

    @property
    def failures(self) -> tuple[ExpectationOutcome, ...]:
        """The expectations that were not met."""
        return tuple(outcome for outcome in self.expectations if not outcome.success)

    @property
    def num_skipped(self) -> int:
        """Expectations that had nothing to compare with."""
        return sum(outcome.skipped for outcome in self.expectations)

    def summary(self) -> str:
        """One line when it passed; otherwise each failing expectation, its count and three example ids."""
        if self.passed:
            number = len(self.expectations) - self.num_skipped
            skipped = f" {self.num_skipped} were skipped." if self.num_skipped else ""
            return f"{self.num_records} records meet all {number} expectations.{skipped}"
        lines = [f"The set fails {len(self.failures)} of {len(self.expectations)} expectations:"]
        for outcome in self.failures:
            examples = f", for example {', '.join(outcome.example_ids)}" if outcome.example_ids else ""
            detail = f" ({outcome.detail})" if outcome.detail else ""
            lines.append(f"  {outcome.name}: {outcome.unexpected_count} unexpected{examples}{detail}")
        return "\n".join(lines)

    def metrics(self) -> dict[str, float]:
        """For the tracker; the names are explained in ``docs/metrics.md``."""
        return {
            "validate/passed": float(self.passed),
            "validate/records": self.num_records,
            "validate/expectations": len(self.expectations),
            "validate/skipped_expectations": self.num_skipped,
            "validate/failed_expectations": len(self.failures),
            "validate/unexpected": sum(outcome.unexpected_count for outcome in self.expectations),
        }

    def to_json(self) -> str:
        """The verdict as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ValidationVerdict":
        """The verdict that :meth:`to_json` wrote."""
        found = json.loads(text)
        outcomes = tuple(
            ExpectationOutcome(**{**outcome, "example_ids": tuple(outcome["example_ids"])})
            for outcome in found["expectations"]
        )
        return cls(**{**found, "expectations": outcomes})
