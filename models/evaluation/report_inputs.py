"""What a report is made from. Plain records: whoever runs a pipeline fills them in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.config import Look, ReportConfig
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
    """One expectation of the validation gate: did it hold, and if not, for how many records and which.

    ``bounds`` say what was expected, ``observed`` what the data have.
    """

    name: str
    passed: bool
    detail: str = ""
    bounds: str = ""
    observed: str = ""
    num_unexpected: int = 0
    examples: tuple[str, ...] = ()
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class StageTime:
    """How long a stage took and on how many processes (one per GPU, or per CPU core).

    ``remark`` says for example that its result came from the cache: ``seconds`` are those of making it.
    """

    name: str
    seconds: float
    remark: str = ""
    num_processes: int = 1

    @property
    def process_hours(self) -> float:
        """What the stage took of the machines."""
        return self.seconds * self.num_processes / 3600


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of the model: the number of its version, whether it is champion now, and why."""

    is_promoted: bool
    version: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that another part of the run has drawn; ``words`` say what it shows."""

    title: str
    svg: bytes
    words: str = ""


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
        "R-GRPO: what crops are worth on held-out questions",
        (
            ("rgrpo/probe/accuracy", "right with crops"),
            ("rgrpo/probe/accuracy_blank", "right with blank crops"),
        ),
        "share",
    ),
    Panel("R-GRPO: size of a box", (("rgrpo/box_share", "share of the picture"),), "share of the picture"),
    Panel("R-GRPO: pixels of a crop over Eq. 4's", (("rgrpo/box_rounding", "won by rounding"),), "times"),
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

    ``trained`` says in a sentence what was trained. ``headline`` names the two rows (new, old) whose
    difference decides "better or not". ``promotion`` is None where no version was judged.
    ``predictions`` maps a row's name to its Parquet file; rows without one are left out of the gallery.
    ``rollouts`` are files of R-GRPO's rollouts by the name of their step, about the questions of
    ``rollout_questions_path``. ``statistics`` are the counts of Figure 3 by name; ``figures`` were drawn
    elsewhere. ``sft_metrics`` and ``rgrpo_metrics`` are the lines of the two stages' ``metrics.jsonl``.
    ``facts`` say where the run comes from.
    """

    title: str
    results: Results
    headline: tuple[str, str]
    look: Look
    questions_path: Path
    predictions: Mapping[str, Path]
    trained: str = ""
    promotion: Promotion | None = None
    rollouts: Mapping[str, Path] | None = None
    rollout_questions_path: Path | None = None
    facts: Sequence[Fact] = ()
    validation: Sequence[Check] = ()
    data: Sequence[Fact] = ()
    statistics: Mapping[str, Mapping[str, int]] | None = None
    figures: Sequence[Figure] = ()
    stages: Sequence[StageTime] = ()
    sft_metrics: Sequence[MetricLine] = ()
    rgrpo_metrics: Sequence[MetricLine] = ()
    sft_panels: Sequence[Panel] = SFT_PANELS
    rgrpo_panels: Sequence[Panel] = RGRPO_PANELS
    config: ReportConfig = field(default_factory=ReportConfig)
