"""The promotion gate: one verdict per rule, with its reason."""

import pytest

from models.config import PromotionConfig
from models.errors import ScoringError
from models.evaluation.results import Results
from models.promotion import REQUIRED_EVIDENCE, Decision, decide
from tests.evaluation_examples import make_results, make_scores, make_variant

POLICY = PromotionConfig(min_questions=500, min_gain=0.0, max_protocol_error_rate=0.05)
EVIDENCE = {name: "something" for name in REQUIRED_EVIDENCE}


def _decide(
    results: Results | None = None, *, evidence: dict[str, str] = EVIDENCE, config: PromotionConfig = POLICY
) -> Decision:
    return decide(
        make_results() if results is None else results,
        challenger="rgrpo",
        baseline="sft",
        evidence=evidence,
        config=config,
    )


def _with_final(**changes: object) -> Results:
    results = make_results()
    final = make_variant("rgrpo", "R-GRPO", 0.742, **changes)
    return results.model_copy(
        update={"variants": tuple(final if row.name == "rgrpo" else row for row in results.variants)}
    )


def test_a_better_model_with_its_evidence_is_promoted_for_every_reason():
    decision = _decide()
    assert decision.promoted
    assert len(decision.reasons) == len(decision.checks) == 5


@pytest.mark.parametrize("name", REQUIRED_EVIDENCE)
def test_no_piece_of_evidence_may_be_missing(name):
    decision = _decide(evidence={**EVIDENCE, name: ""})
    assert not decision.promoted
    assert decision.reasons == (f"NO: all evidence is present (found: missing ['{name}'])",)


def test_a_gain_that_may_be_chance_is_refused():
    """The low end of the example's interval, 0.11, decides: not the difference, 0.152."""
    low = make_results().comparison("rgrpo", "sft").difference.low  # type: ignore[union-attr]
    assert _decide(config=POLICY.model_copy(update={"min_gain": low - 1e-6})).promoted
    refused = _decide(config=POLICY.model_copy(update={"min_gain": low}))
    assert not refused.promoted
    assert "gain over SFT" in refused.reasons[0]


def test_too_few_questions_are_refused():
    assert not _decide(config=POLICY.model_copy(update={"min_questions": 100_000})).promoted


def test_a_row_that_we_broke_is_no_verdict_on_the_model():
    assert not _decide(_with_final(unscored=1)).promoted


def test_a_model_that_breaks_the_protocol_is_refused():
    """1 % of the example's attempts break it."""
    scores = make_scores(0.742)
    assert scores.protocol_error_rate == 0.01
    assert not _decide(config=POLICY.model_copy(update={"max_protocol_error_rate": 0.009})).promoted


def test_a_comparison_that_was_not_measured_is_our_fault():
    with pytest.raises(ScoringError, match=r"does not compare 'rgrpo' with 'sft'.*base"):
        _decide(make_results().model_copy(update={"comparisons": ()}))
