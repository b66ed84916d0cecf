"""What a report is made from. Plain records: whoever runs a pipeline fills them in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import Look
from models.evaluation.results import Results

# One line of a stage's metrics.jsonl.
MetricLine = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value to show, with an optional remark."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation of the validation gate: did it hold, and if not, for how many records and which."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage took; ``remark`` says for example that its result came from the cache."""

    name: str
    seconds: float
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of the model: the number of its version, whether it is champion now, and why."""

    is_promoted: bool
    version: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart of training: its title, the metrics it shows, and their unit.

    ``series`` are pairs of a metric's name and its name for people; a metric's name that ends in ``/`` stands
    for all metrics below it, and the rest of their names is shown.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    unit: str = ""


SFT_PANELS: tuple[Panel, ...] = (
    Panel("SFT: loss per token", (("sft/loss", "training"), ("sft/validation_loss", "validation")), "nats"),
)
RGRPO_PANELS: tuple[Panel, ...] = (
    Panel(
        "R-GRPO: reward per trajectory",
        (
            ("rgrpo/reward", "total"),
            ("rgrpo/reward/accuracy", "accuracy"),
            ("rgrpo/reward/format", "format"),
            ("rgrpo/reward/validity", "valid boxes"),
            ("rgrpo/reward/length", "length"),
        ),
    ),
    Panel("R-GRPO: share of right answers, by kind of question", (("rgrpo/correct/", ""),)),
    Panel(
        "R-GRPO: looking",
        (
            ("rgrpo/crops_per_trajectory", "crops per trajectory"),
            ("rgrpo/errors_per_trajectory", "refused boxes per trajectory"),
        ),
    ),
    Panel(
        "R-GRPO: share of groups that teach little",
        (
            ("rgrpo/zero_variance_share", "equal rewards"),
            ("rgrpo/all_wrong_share", "all wrong, rewards differ"),
            ("rgrpo/length_only_share", "length differs only"),
        ),
    ),
    Panel(
        "R-GRPO: share of trajectories cut off or lost",
        (("rgrpo/truncated_share", "cut off by a limit"), ("rgrpo/unscored_share", "broken by us")),
    ),
    Panel("R-GRPO: engine against trainer (k3)", (("rgrpo/mismatch_kl", "mismatch"),), "nats per token"),
    Panel("R-GRPO: entropy of the policy", (("rgrpo/entropy", "entropy"),), "nats per token"),
    Panel("R-GRPO: gradient norm before clipping", (("rgrpo/gradient_norm", "norm"),)),
)


@dataclass(frozen=True)
class ReportInputs:
    """Everything the page shows.

    ``headline`` names the two rows (new, old) whose difference decides "better or not". ``sft_metrics`` and
    ``rgrpo_metrics`` are the lines of the two stages' ``metrics.jsonl``. ``predictions`` maps a row's name to
    its Parquet file; rows without one are left out of the gallery. ``facts`` say where the run comes from.
    """

    title: str
    results: Results
    headline: tuple[str, str]
    promotion: Promotion
    look: Look
    questions_path: Path
    predictions: Mapping[str, Path]
    facts: Sequence[Fact] = ()
    validation: Sequence[Check] = ()
    data: Sequence[Fact] = ()
    stages: Sequence[StageTime] = ()
    sft_metrics: Sequence[MetricLine] = ()
    rgrpo_metrics: Sequence[MetricLine] = ()
    sft_panels: Sequence[Panel] = SFT_PANELS
    rgrpo_panels: Sequence[Panel] = RGRPO_PANELS
    num_gallery_questions: int = 30
