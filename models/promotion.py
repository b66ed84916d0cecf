"""The promotion gate: a plain function from a version's evidence to a decision with reasons.

Policy, in the order of the reasons:

1. the evidence is there, whole, and unchanged since it was registered;
2. the digests agree: the weights in the store are those that were registered and those of the evidence, the
   verdict is about the data that were trained on, and these weights answered the questions;
3. data validation, preflight and the guards of the training said yes;
4. nobody rolled back from these weights;
5. the comparison is with the champion of now, which has other weights: with the same the difference is 0;
6. challenger and baseline answered the same questions, at least ``min_questions`` of them, and none of the
   challenger's rows was broken by us;
7. the lower end of the paired-bootstrap 95 % interval of the gain in greedy accuracy is above ``min_gain``;
8. no kind of question lost more than ``max_kind_loss``. The difference itself counts and not its interval:
   a kind has few questions, so its interval would excuse any loss or forbid any gain;
9. no published benchmark that was measured for both, on the same rows, lost more than ``max_benchmark_loss``;
10. the share of attempts in which the challenger broke the protocol is at most ``max_protocol_error_rate``;
11. an answer took at most ``max_seconds_per_question``.

The baseline is the present champion; where there is none yet, the untrained base model. Rules 1 to 5 have no
setting: no preset, option or parameter opens them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.check import Check
from models.config import PromotionConfig
from models.errors import ScoringError
from models.evaluation.results import Comparison, Results, VariantResult
from models.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version, as the registry and the store show it now.

    ``problem`` says why evidence or results could not be read; ``stored_sha256`` is the digest of the weights
    in the store, empty when they are missing; ``benchmarks`` are differences of headlines by benchmark;
    ``rows`` are the digests of the weights of the evaluation's
    rows; ``baseline`` is the row to beat, None when the present champion was not measured.
    """

    registered_sha256: str
    stored_sha256: str
    evidence: Evidence | None
    results: Results | None
    rows: Mapping[str, str]
    row: str
    baseline: str | None
    champion: str = ""
    was_withdrawn: bool = False
    benchmarks: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def has_weights_of_champion(self) -> bool:
        """Whether it would replace the champion by itself."""
        return self.baseline is not None and self.rows.get(self.baseline) == self.registered_sha256


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the challenger becomes champion, and every rule that was looked at."""

    promoted: bool
    baseline: str
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The rules that decided: those broken, or all of them when none is."""
        decisive = [check for check in self.checks if not check.passed] or list(self.checks)
        return tuple(str(check) for check in decisive)


def decide(candidate: Candidate, config: PromotionConfig) -> Decision:
    """Judge a version.

    Raises ScoringError when its row, or its comparison with the baseline, was not measured: that is our
    fault, not a verdict on the model.
    """
    evidence, results = candidate.evidence, candidate.results
    if evidence is None or results is None:
        return Decision(False, candidate.baseline or "", (_no_evidence(candidate),))
    checks = [*_trusted(candidate, evidence, results), *_approved(candidate, evidence)]
    if candidate.baseline is not None and not candidate.has_weights_of_champion:
        row, comparison = _measured(candidate.row, candidate.baseline, results)
        checks += _better(row, comparison, results, config)
        checks.append(_no_benchmark_lost(candidate, config))
    return Decision(all(check.passed for check in checks), candidate.baseline or "", tuple(checks))


def decide_return(candidate: Candidate, *, was_champion: bool) -> Decision:
    """Judge whether somebody may roll back to a version: it was champion, and is still what it was then."""
    before = Check(
        name="was champion",
        value="it was" if was_champion else "it never was",
        rule="only what was champion before can be rolled back to (`vlm-r3 promote` asks the gate)",
        passed=was_champion,
    )
    checks = [before]
    if candidate.evidence is None or candidate.results is None:
        checks.append(_no_evidence(candidate))
    else:
        checks += _trusted(candidate, candidate.evidence, candidate.results)
    return Decision(all(check.passed for check in checks), candidate.champion, tuple(checks))


def _no_evidence(candidate: Candidate) -> Check:
    found = candidate.problem or "none"
    return Check(name="evidence", value=found, rule="all evidence is present", passed=False)


def _trusted(candidate: Candidate, evidence: Evidence, results: Results) -> list[Check]:
    """Rules 1 and 2: what is judged is what was made."""
    missing = evidence.missing()
    weights = {candidate.registered_sha256, candidate.stored_sha256, evidence.model.sha256}
    answered = {candidate.rows.get(candidate.row, ""), evidence.evaluation.model_sha256}
    validated = evidence.validation.data_sha256
    return [
        Check(
            name="evidence",
            value=f"missing {list(missing)}" if missing else "all of it",
            rule="all evidence is present",
            passed=not missing,
        ),
        Check(
            name="weights",
            value=_digests(weights),
            rule="the stored weights are those that were registered, and those of the evidence",
            passed=len(weights) == 1,
        ),
        Check(
            name="data",
            value=_digests({validated, evidence.data.artifact.sha256}),
            rule="the verdict is about the data that were trained on",
            passed=bool(validated) and validated == evidence.data.artifact.sha256,
        ),
        Check(
            name="evaluation",
            value=_digests(answered),
            rule="these weights answered the questions of the evidence",
            passed=answered == {candidate.registered_sha256}
            and results.questions_digest == evidence.evaluation.questions_digest,
        ),
    ]


def _approved(candidate: Candidate, evidence: Evidence) -> list[Check]:
    """Rules 3 to 5: what others said of it."""
    guards = [str(check) for check in evidence.guards.limits if not check.passed]
    preflight = [str(check) for check in evidence.preflight.checks if not check.passed]
    return [
        Check(
            name="validation",
            value=evidence.validation.summary,
            rule="the data passed validation",
            passed=evidence.validation.passed,
        ),
        Check(
            name="preflight",
            value="; ".join(preflight) or f"{len(evidence.preflight.checks)} checks kept",
            rule="preflight passed",
            passed=evidence.preflight.passed,
        ),
        Check(
            name="guards",
            value="; ".join(guards) or f"kept for {evidence.guards.num_steps} steps",
            rule="the guards of the training were kept",
            passed=evidence.guards.passed,
        ),
        Check(
            name="not withdrawn",
            value="rolled back" if candidate.was_withdrawn else "never rolled back",
            rule="nobody rolled back from these weights (`vlm-r3 rollback --to` brings them back)",
            passed=not candidate.was_withdrawn,
        ),
        Check(
            name="comparison",
            value=_compared(candidate, evidence),
            rule="it was compared with the champion of now, which has other weights",
            passed=candidate.baseline is not None and not candidate.has_weights_of_champion,
        ),
    ]


def _better(
    row: VariantResult, comparison: Comparison, results: Results, config: PromotionConfig
) -> list[Check]:
    """Rules 6 to 8, 10 and 11: what it scored."""
    scores, gain = row.overall, comparison.difference
    over = results.label(comparison.old)
    return [
        Check(
            name="questions",
            value=str(comparison.num_questions),
            rule=f"at least {config.min_questions} paired questions",
            passed=comparison.num_questions >= config.min_questions,
        ),
        Check(
            name="unscored",
            value=f"{scores.num_unscored} unscored",
            rule="every row was scored",
            passed=scores.num_unscored == 0,
        ),
        Check(
            name="gain",
            value=f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
            rule=f"gain over {over} is above {config.min_gain:+.3f} with 95 % confidence",
            passed=gain.low > config.min_gain,
        ),
        _no_kind_lost(comparison, results, config),
        Check(
            name="protocol",
            value=f"{scores.protocol_error_rate:.1%}",
            rule=f"protocol errors in at most {config.max_protocol_error_rate:.0%} of attempts",
            passed=scores.protocol_error_rate <= config.max_protocol_error_rate,
        ),
        Check(
            name="latency",
            value=f"{scores.seconds_per_question:.2f} s",
            rule=f"an answer takes at most {config.max_seconds_per_question:g} s",
            passed=scores.seconds_per_question <= config.max_seconds_per_question,
        ),
    ]


def _no_kind_lost(comparison: Comparison, results: Results, config: PromotionConfig) -> Check:
    kinds = {
        found.kind: found.difference.value
        for found in results.comparisons
        if (found.new, found.old) == (comparison.new, comparison.old) and found.kind
    }
    worst = min(kinds, key=lambda kind: kinds[kind], default="")
    return Check(
        name="kinds",
        value=f"worst: {worst} {kinds[worst]:+.3f}" if worst else "questions have no kinds",
        rule=f"no kind of question lost more than {config.max_kind_loss:.3f}",
        passed=not worst or kinds[worst] >= -config.max_kind_loss,
    )


def _no_benchmark_lost(candidate: Candidate, config: PromotionConfig) -> Check:
    found = candidate.benchmarks
    worst = min(found, key=lambda name: found[name], default="")
    return Check(
        name="benchmarks",
        value=f"worst of {len(found)}: {worst} {found[worst]:+.3f}" if worst else "none measured for both",
        rule=f"no published benchmark lost more than {config.max_benchmark_loss:.3f}",
        passed=not worst or found[worst] >= -config.max_benchmark_loss,
    )


def _measured(row: str, baseline: str, results: Results) -> tuple[VariantResult, Comparison]:
    found, comparison = results.variant(row), results.comparison(row, baseline)
    if found is None or comparison is None:
        measured = [variant.name for variant in results.variants]
        raise ScoringError(
            f"The evaluation does not compare {row!r} with {baseline!r}, so nothing can be decided. "
            f"Measured rows: {measured}."
        )
    return found, comparison


def _compared(candidate: Candidate, evidence: Evidence) -> str:
    if candidate.has_weights_of_champion:
        return f"champion is version {candidate.champion} with the same weights: the difference is exactly 0"
    if candidate.baseline is not None:
        return f"with {candidate.baseline}"
    then = f"version {evidence.parent_version}" if evidence.parent_version else "none"
    return (
        f"champion is version {candidate.champion}, it was {then} when this was measured; "
        "run the pipeline again"
    )


def _digests(found: set[str]) -> str:
    return " and ".join(sorted(digest[:12] or "none" for digest in found))
