"""What an evaluation came to: the content of ``metrics.json``, a documented interface for programs.

Shares and rates lie between 0 and 1; boxes are measured in seen pixels. A field is None where it has no
meaning: no crop was given, no question has a gold box, a direct answer has no format.
"""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from models.answers import MATCHER, MATCHER_VERSION
from models.config import CropSourceName, Style
from models.errors import ScoringError
from models.rundir import write_atomically

RESULTS_VERSION = "evaluation/2"


class Frozen(BaseModel):
    """Base of the parts: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedResults(Frozen):
    """Base of what is kept as ``metrics.json``: ``contents`` says of what, ``version`` has a default."""

    contents: ClassVar[str]
    version: str

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, self.model_dump_json(indent=2))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``metrics.json``. Raises ScoringError when it is missing, malformed or of another version."""
        known = cls.model_fields["version"].default
        try:
            results = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ScoringError(f"{path} does not hold the results of {cls.contents}: {error}") from error
        if results.version != known:
            raise ScoringError(
                f"{path}: version {results.version!r}; this reader knows {known!r}. Run again."
            )
        return results


class Estimate(Frozen):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class Scores(Frozen):
    """Greedy answers summed up, one per question. Rates are over the attempts that we did not break.

    ``num_unscored`` attempts were broken by us: they are neither right nor wrong, and are missing from
    ``num_scored``. ``gold_recall`` is over gold boxes: the share that an accepted box meets with an IoU of at
    least 0.5. ``crops_with_answer`` is over the crops at questions with gold boxes: the share that holds a
    gold box (:data:`models.evaluation.metrics.HOLDS_COVERAGE`).
    """

    num_scored: int
    num_unscored: int
    num_correct: int
    accuracy: Estimate
    format_rate: float | None
    protocol_error_rate: float
    truncation_rate: float
    crops_per_question: float
    look_rate: float | None
    first_box_on_object: float | None
    first_box_iou: float | None
    first_box_coverage: float | None
    gold_recall: float | None
    crops_with_answer: float | None
    crop_width: float | None
    crop_height: float | None
    crop_tokens: float | None
    tokens_per_question: float
    seconds_per_question: float


class SampledScores(Frozen):
    """Several samples per question at temperature 1; ``mean`` is over questions, of their share right."""

    num_samples: int
    num_questions: int
    num_unscored: int
    mean: Estimate
    format_rate: float | None


class VariantResult(Frozen):
    """One row of the results. ``model_digest`` covers every file of the model's folder.

    ``seconds`` is the time of the start that finished the row, of its slowest rank; ``tokens_per_second`` are
    the tokens sampled in it, None when it sampled none.
    """

    name: str
    label: str
    style: Style
    crop_source: CropSourceName
    model_path: str
    model_digest: str
    overall: Scores
    kinds: dict[str, Scores]
    sampled: SampledScores | None = None
    seconds: float
    tokens_per_second: float | None


class Comparison(Frozen):
    """Accuracy of ``new`` minus accuracy of ``old`` on the same questions; ``kind`` is empty for all of them.

    ``num_unscored`` questions were left out because we broke one of the two attempts.
    """

    new: str
    old: str
    kind: str = ""
    difference: Estimate
    num_questions: int
    num_unscored: int

    @property
    def is_above_zero(self) -> bool:
        """True when the whole interval is above zero: the new one is better."""
        return self.difference.low > 0

    @property
    def is_below_zero(self) -> bool:
        """True when the whole interval is below zero: the new one is worse."""
        return self.difference.high < 0


class Results(SavedResults):
    """A whole evaluation. ``questions_digest`` covers the questions asked: ids, pictures, texts, answers.
    ``scorer`` and ``scorer_version`` name the rule that compared answers (:mod:`models.answers`).
    """

    contents = "an evaluation"
    version: str = RESULTS_VERSION
    seed: int
    questions_digest: str
    scorer: str = MATCHER
    scorer_version: str = MATCHER_VERSION
    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...] = ()

    def variant(self, name: str) -> VariantResult | None:
        """The row of that name, None when it was not measured."""
        return next((variant for variant in self.variants if variant.name == name), None)

    def comparison(self, new: str, old: str, kind: str = "") -> Comparison | None:
        """The difference between two rows, None when it was not measured."""
        wanted = (new, old, kind)
        return next(
            (found for found in self.comparisons if (found.new, found.old, found.kind) == wanted), None
        )

    def label(self, name: str) -> str:
        """The name for people of a row."""
        variant = self.variant(name)
        return name if variant is None else variant.label

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of question, the most frequent one first."""
        counts: dict[str, int] = {}
        for variant in self.variants:
            for kind, scores in variant.kinds.items():
                counts[kind] = max(counts.get(kind, 0), scores.num_scored + scores.num_unscored)
        return tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))
