"""The rows that a pipeline run measures, and the differences it reports.

The base model does not know the protocol, so it is measured two ways: with the look-again prompt, which is
how the trained models are asked, and directly, which is what it knows. The ablations of paper 4.3 (Table 2)
answer the final model's crop commands in other ways; ``low_resolution`` is the fair control (same number of
tokens, no new detail).
"""

from collections.abc import Collection

from models.config import CropSourceName, EvaluationConfig
from models.run_config import EvaluationVariant

# (new, old): accuracy of the first minus accuracy of the second, on the same questions.
COMPARISONS: tuple[tuple[str, str], ...] = (
    ("sft", "base_direct"),
    ("sft", "base"),
    ("rgrpo", "sft"),
    ("rgrpo", "more_sft"),
    ("rgrpo", "no_sft"),
    ("rgrpo", "no_crop"),
    ("rgrpo", "low_resolution"),
    ("rgrpo", "random_region"),
)
ABLATIONS: tuple[tuple[str, str, CropSourceName], ...] = (
    ("no_crop", "no crop injected", "none"),
    ("low_resolution", "low-resolution crop", "low_resolution"),
    ("random_region", "random region", "random_region"),
)


def pipeline_variants(
    evaluation: EvaluationConfig,
    *,
    base: str,
    sft: str,
    rgrpo: str,
    more_sft: str | None = None,
    no_sft: str | None = None,
    with_ablations: bool = True,
) -> tuple[EvaluationVariant, ...]:
    """The rows of a pipeline run, in the order of its table, for the folders of its models.

    ``more_sft`` spent the R-GRPO stage's time on SFT, ``no_sft`` is R-GRPO from the base; None leaves the row
    out.
    """

    def row(name: str, label: str, path: str) -> EvaluationVariant:
        return EvaluationVariant(
            name=name,
            label=label,
            model_path=path,
            style="direct" if name == "base_direct" else "look-again",
            num_questions=evaluation.num_questions,
            num_sampled_questions=min(evaluation.num_sampled_questions, evaluation.num_questions),
        )

    trained = [("sft", "SFT", sft), ("more_sft", "more SFT", more_sft), ("rgrpo", "R-GRPO", rgrpo)]
    rows = [row("base_direct", "base (direct)", base), row("base", "base (look-again)", base)]
    rows += [row(name, label, path) for name, label, path in trained if path is not None]
    if no_sft is not None:
        rows.append(row("no_sft", "no SFT", no_sft))
    if with_ablations:
        rows += [
            EvaluationVariant(
                name=name,
                label=label,
                model_path=rgrpo,
                crop_source=crop_source,
                num_questions=min(evaluation.num_ablation_questions, evaluation.num_questions),
            )
            for name, label, crop_source in ABLATIONS
        ]
    return tuple(rows)


def pipeline_comparisons(variants: Collection[EvaluationVariant]) -> tuple[tuple[str, str], ...]:
    """Those of ``COMPARISONS`` whose two rows are measured."""
    names = {variant.name for variant in variants}
    return tuple(pair for pair in COMPARISONS if names.issuperset(pair))
