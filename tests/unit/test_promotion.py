"""The promotion gate: one verdict per rule, with its reason."""

from dataclasses import replace
from typing import Any

import pytest

from models.check import Preflight
from models.config import PromotionConfig
from models.errors import ScoringError
from models.evaluation.results import Results
from models.evidence import Evidence, Guards, Kept
from models.promotion import Candidate, Decision, decide, decide_return
from tests.evaluation_examples import make_scores, make_variant
from tests.evidence_examples import POLICY, make_evidence, make_results

KINDS = {"read": 0.1, "add": 0.0, "where": -0.04}
RULES = (
    *("evidence", "weights", "data", "evaluation", "validation", "preflight", "guards", "not withdrawn"),
    *("comparison", "questions", "unscored", "gain", "kinds", "protocol", "latency"),
    "benchmarks",
)


def candidate(**changes: Any) -> Candidate:
    """A version that is good in every respect."""
    evidence = make_evidence()
    found = Candidate(
        registered_sha256=evidence.model.sha256,
        stored_sha256=evidence.model.sha256,
        evidence=evidence,
        results=make_results(low=0.11, old="champion", kinds=KINDS),
        rows={"rgrpo": evidence.model.sha256, "champion": "old"},
        row="rgrpo",
        baseline="champion",
        champion="1",
    )
    return replace(found, **changes)


def broken(decision: Decision) -> list[str]:
    """The rules that are not kept."""
    assert not decision.promoted
    return [check.name for check in decision.checks if not check.passed]


def with_final(**changes: Any) -> Results:
    results = make_results(low=0.11, old="champion")
    final = make_variant("rgrpo", "R-GRPO", 0.742, **changes)
    return results.model_copy(update={"variants": (final, results.variants[1])})


def test_a_better_model_with_its_evidence_is_promoted_for_every_reason() -> None:
    decision = decide(candidate(), POLICY)
    assert decision.promoted
    assert tuple(check.name for check in decision.checks) == RULES
    assert len(decision.reasons) == len(RULES)


def test_without_evidence_nothing_else_is_asked() -> None:
    decision = decide(candidate(evidence=None, results=None, problem="version 3 carries none"), POLICY)
    assert broken(decision) == ["evidence"]
    assert decision.reasons == ("NO: all evidence is present (found: version 3 carries none)",)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"code_digest": ""}, "code_digest"),
        ({"base_licence": ""}, "base_licence"),
        ({"preset": {}}, "preset"),
        ({"base": Kept(uri="", sha256="")}, "base"),
    ],
)
def test_no_piece_of_evidence_may_be_missing(changes: dict[str, Any], name: str) -> None:
    decision = decide(candidate(evidence=make_evidence(**changes)), POLICY)
    assert broken(decision) == ["evidence"]
    assert f"missing ['{name}']" in decision.reasons[0]


def changed(part: str, **fields: Any) -> Evidence:
    """Evidence with one part changed."""
    evidence = make_evidence()
    return evidence.model_copy(update={part: getattr(evidence, part).model_copy(update=fields)})


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"stored_sha256": "other"}, ["weights"]),
        ({"stored_sha256": ""}, ["weights"]),
        ({"registered_sha256": "other", "stored_sha256": "other"}, ["weights", "evaluation"]),
        ({"rows": {"rgrpo": "other", "champion": "old"}}, ["evaluation"]),
        ({"evidence": changed("validation", data_sha256="other")}, ["data"]),
        ({"evidence": changed("validation", data_sha256="")}, ["data"]),
        ({"evidence": changed("evaluation", questions_digest="others")}, ["evaluation"]),
        ({"evidence": changed("validation", passed=False)}, ["validation"]),
        ({"evidence": make_evidence(preflight=Preflight(checks=()))}, ["evidence", "preflight"]),
        (
            {"evidence": make_evidence(guards=Guards(num_steps=0, metrics={}, limits=()))},
            ["evidence", "guards"],
        ),
        ({"was_withdrawn": True}, ["not withdrawn"]),
    ],
)
def test_digests_must_agree_and_all_must_have_said_yes(changes: dict[str, Any], rules: list[str]) -> None:
    assert broken(decide(candidate(**changes), POLICY)) == rules


def test_a_guard_that_was_broken_names_its_value() -> None:
    (limit,) = make_evidence().guards.limits
    worse = limit.model_copy(update={"passed": False, "value": "0.9"})
    decision = decide(candidate(evidence=changed("guards", limits=(worse,))), POLICY)
    assert broken(decision) == ["guards"]
    assert "0.9" in decision.reasons[0]


def test_a_comparison_with_an_earlier_champion_is_stale() -> None:
    decision = decide(candidate(baseline=None, champion="4"), POLICY)
    assert broken(decision) == ["comparison"]
    assert "champion is version 4, it was none when this was measured" in decision.reasons[0]


def test_the_champions_own_weights_do_not_replace_it_at_any_setting() -> None:
    """Nothing compares a row with itself: it would be the evaluation's fault otherwise."""
    own = make_evidence().model.sha256
    open_gate = POLICY.model_copy(update={"min_gain": -1})
    decision = decide(candidate(baseline="rgrpo", rows={"rgrpo": own}), open_gate)
    assert broken(decision) == ["comparison"]
    assert "version 1 with the same weights: the difference is exactly 0" in decision.reasons[0]


def test_a_gain_that_may_be_chance_is_refused() -> None:
    """The low end of the interval, 0.11, decides: not the difference, 0.16."""
    assert decide(candidate(), POLICY.model_copy(update={"min_gain": 0.11 - 1e-6})).promoted
    decision = decide(candidate(), POLICY.model_copy(update={"min_gain": 0.11}))
    assert broken(decision) == ["gain"]
    assert "gain over champion" in decision.reasons[0]


def test_no_kind_of_question_may_get_worse_than_the_tolerance() -> None:
    assert decide(candidate(), POLICY.model_copy(update={"max_kind_loss": 0.04})).promoted
    decision = decide(candidate(), POLICY.model_copy(update={"max_kind_loss": 0.039}))
    assert broken(decision) == ["kinds"]
    assert "worst: where -0.040" in decision.reasons[0]


def test_no_published_benchmark_may_get_worse_than_the_tolerance() -> None:
    measured = candidate(benchmarks={"mme look-again": 0.1, "mmmu direct": -0.02})
    assert decide(measured, POLICY).promoted
    decision = decide(measured, POLICY.model_copy(update={"max_benchmark_loss": 0.01}))
    assert broken(decision) == ["benchmarks"]
    assert "worst of 2: mmmu direct -0.020" in decision.reasons[0]


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        ({"min_questions": 100_000}, "questions"),
        ({"max_protocol_error_rate": 0.009}, "protocol"),  # 1 % of the example's attempts break it
        ({"max_seconds_per_question": 0.01}, "latency"),
    ],
)
def test_limits_are_those_of_the_policy(policy: dict[str, float], rule: str) -> None:
    assert broken(decide(candidate(), POLICY.model_copy(update=policy))) == [rule]


def test_a_row_that_we_broke_is_no_verdict_on_the_model() -> None:
    assert broken(decide(candidate(results=with_final(unscored=1)), POLICY)) == ["unscored"]


def test_the_slowest_answer_that_may_be_is_in_seconds() -> None:
    slow = make_scores(0.742).model_copy(update={"seconds_per_question": 61.0})
    assert broken(decide(candidate(results=with_final(overall=slow)), POLICY)) == ["latency"]


def test_a_comparison_that_was_not_measured_is_our_fault() -> None:
    results = make_results(low=0.11, old="champion").model_copy(update={"comparisons": ()})
    with pytest.raises(ScoringError, match=r"does not compare 'rgrpo' with 'champion'"):
        decide(candidate(results=results), POLICY)


def test_no_setting_opens_the_rules_about_evidence() -> None:
    """Whatever a preset or an option says, a version without evidence stays what it is."""
    open_gate = PromotionConfig(
        min_questions=1,
        min_gain=-1,
        max_kind_loss=1,
        max_protocol_error_rate=1,
        max_seconds_per_question=1e9,
    )
    for changes in ({"evidence": None, "results": None}, {"stored_sha256": ""}, {"baseline": None}):
        assert not decide(candidate(**changes), open_gate).promoted


def test_only_what_was_champion_and_is_whole_can_be_rolled_back_to() -> None:
    assert decide_return(candidate(baseline=None), was_champion=True).promoted
    assert broken(decide_return(candidate(), was_champion=False)) == ["was champion"]
    assert broken(decide_return(candidate(stored_sha256=""), was_champion=True)) == ["weights"]
    bare = candidate(evidence=None, results=None)
    assert broken(decide_return(bare, was_champion=True)) == ["evidence"]
