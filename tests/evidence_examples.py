"""Evidence and evaluations to judge, with nothing behind them."""

from typing import Any

from models.check import Check, Preflight
from models.config import PromotionConfig
from models.evaluation.results import Comparison, Estimate, Results
from models.evidence import (
    DataEvidence,
    EvaluationEvidence,
    Evidence,
    Guards,
    Kept,
    Spread,
    ValidationEvidence,
)
from models.presets import load_preset
from tests.evaluation_examples import estimate, make_variant

POLICY = PromotionConfig(min_questions=500, min_gain=0.0, max_protocol_error_rate=0.05)


def make_results(*, low: float, old: str, num: int = 600, kinds: dict[str, float] | None = None) -> Results:
    """``rgrpo`` gains ``low`` to ``low + 0.1`` over the row ``old``; ``kinds`` are differences by kind."""
    gain = Estimate(value=low + 0.05, low=low, high=low + 0.1)
    differences = {"": gain, **{kind: estimate(value) for kind, value in (kinds or {}).items()}}
    return Results(
        seed=0,
        questions_digest="q",
        variants=(make_variant("rgrpo", "R-GRPO", 0.742), make_variant(old, old, 0.6)),
        comparisons=tuple(
            Comparison(
                new="rgrpo",
                old=old,
                kind=kind,
                difference=difference,
                num_questions=48 if kind else num,
                num_unscored=0,
            )
            for kind, difference in differences.items()
        ),
    )


def make_evidence(
    *,
    model: Kept | None = None,
    evaluation: Kept | None = None,
    **changes: Any,
) -> Evidence:
    """Whole evidence of one model; ``changes`` replace parts of it."""
    data = Kept(uri="file:///d", sha256="d" * 64)
    model = model or Kept(uri="file:///m", sha256="m" * 64)
    kept = Check(name="engine", value="vllm", rule="an engine that takes checkpoints", passed=True)
    kl = Spread(first=0.001, last=0.002, lowest=0.001, highest=0.003, mean=0.002)
    parts: dict[str, Any] = {
        "preset": load_preset("tiny").model_dump(mode="json"),
        "git_commit": "c" * 40,
        "code_digest": "code",
        "base": Kept(uri="file:///b", sha256="b" * 64),
        "base_licence": "made here",
        "model": model,
        "data": DataEvidence(artifact=data, num_records=10, licences=("drawn here",)),
        "validation": ValidationEvidence(
            artifact=Kept(uri="file:///v", sha256="v" * 64),
            data_sha256=data.sha256,
            passed=True,
            summary="10 records meet all 17 expectations.",
        ),
        "preflight": Preflight(checks=(kept,)),
        "guards": Guards(num_steps=3, metrics={"rgrpo/mismatch_kl": kl}, limits=(kept,)),
        "evaluation": EvaluationEvidence(
            artifact=evaluation or Kept(uri="file:///e", sha256="e" * 64),
            questions_digest="q",
            model_sha256=model.sha256,
            baseline="base_direct",
            baseline_sha256="b" * 64,
            accuracy=estimate(0.742),
            gains=(),
        ),
        "parent_version": "",
        "tracking_run": "",
    }
    return Evidence.model_validate({**parts, **changes})
