"""Named ways to answer a model's crop commands, the rows that a pipeline run measures, and its differences.

A name means the same on the held-out questions and on a published benchmark. The ablations of paper 4.4
(Table 2) are ``no_crop`` and its fair control ``low_resolution`` (same number of tokens, no new detail);
``boxes_40`` to ``boxes_90`` are the points of Figure 4.

The base model does not know the protocol, so a pipeline measures it two ways: with the look-again prompt,
which is how the trained models are asked, and directly, which is what it knows.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from models.config import BoxCorruption, CorruptionWay, CropSourceName, EvaluationConfig, Look
from models.errors import ConfigError
from models.run_config import EvaluationVariant

LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer crop commands. ``level`` is the grounding accuracy to bring about; None leaves it."""

    name: str
    label: str
    crop_source: CropSourceName = "original"
    way: CorruptionWay = "replace"
    level: float | None = None

    def corruption(self, own_accuracy: float = 1.0) -> BoxCorruption | None:
        """How many boxes must miss, for a model whose own boxes are accurate at that rate.

        Raises ConfigError for a level above the model's own, which no corruption can bring about.
        """
        if self.level is None:
            return None
        if self.level > own_accuracy:
            raise ConfigError(
                f"Variant {self.name!r} wants {100 * self.level:.0f} % of the boxes accurate, the model's "
                f"own are at {100 * own_accuracy:.1f} %. Boxes can only be made worse: choose a lower level."
            )
        return BoxCorruption(way=self.way, kept_share=self.level / own_accuracy)

    def look(self, look: Look) -> Look:
        """The rules of looking again under this variant, every box of the model taken as accurate."""
        return look.model_copy(update={"crop_source": self.crop_source, "corruption": self.corruption()})


def level_variant(level: float, way: CorruptionWay) -> Variant:
    """The variant that brings about a grounding accuracy (0 to 1): ``boxes_40`` or ``boxes_40_perturbed``."""
    name, percent = f"boxes_{100 * level:g}", f"{100 * level:g} % of the boxes accurate"
    if way == "perturb":
        return Variant(f"{name}_perturbed", f"{percent}, others perturbed", way=way, level=level)
    return Variant(name, f"{percent}, others replaced", way=way, level=level)


FULL = Variant("full", "full")
ABLATIONS: tuple[Variant, ...] = (
    Variant("no_crop", "no crop injected", "none"),
    Variant("low_resolution", "low-resolution crop", "low_resolution"),
    Variant("random_region", "random region", "random_region"),
)
WAYS: tuple[CorruptionWay, ...] = ("replace", "perturb")
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (FULL, *ABLATIONS, *(level_variant(level, way) for way in WAYS for level in LEVELS))
    }
)

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


def get_variant(name: str) -> Variant:
    """The variant of that name. Raises ConfigError for an unknown one."""
    if name not in VARIANTS:
        raise ConfigError(f"There is no variant {name!r}. Choose among {', '.join(VARIANTS)}.")
    return VARIANTS[name]


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
                name=ablation.name,
                label=ablation.label,
                model_path=rgrpo,
                crop_source=ablation.crop_source,
                num_questions=min(evaluation.num_ablation_questions, evaluation.num_questions),
            )
            for ablation in ABLATIONS
        ]
    return tuple(rows)


def pipeline_comparisons(variants: Collection[EvaluationVariant]) -> tuple[tuple[str, str], ...]:
    """Those of ``COMPARISONS`` whose two rows are measured."""
    names = {variant.name for variant in variants}
    return tuple(pair for pair in COMPARISONS if names.issuperset(pair))
