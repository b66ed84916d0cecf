"""Table 2 of the paper (4.4): what is each part worth?

``no_crop`` leaves the boxes and takes the crops away, as the paper does. That changes two things at once: the
detail is gone, and the model meets a text it never saw in training. ``low_resolution`` is the fair control:
the crop comes, with as many tokens, but shows only the pixels that the model had already seen.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from models.analyses import tables
from models.analyses.measuring import ALL, Asking, Group, Source
from models.errors import ConfigError
from models.evaluation.metrics import paired_bootstrap
from models.evaluation.results import Estimate, Frozen
from models.evaluation.variants import FULL, get_variant
from models.protocol import is_well_formed
from models.run_config import AnalysisRun

LABELS: Mapping[str, str] = {
    "base": "base model, asked directly",
    "no_crop": "w/o interleaved crops",
    "low_resolution": "w/o new detail in the crops (low resolution)",
    "no_sft": "w/o VLIR fine-tuning",
    "no_rgrpo": "w/o R-GRPO",
    "full": "full model",
}


class Row(Frozen):
    """One variant on one group of questions. ``difference`` is its accuracy minus the full model's, paired by
    question, over ``num_paired`` of them. ``format_rate`` is None for a direct answer."""

    set: str
    questions: str
    variant: str
    accuracy: Estimate
    difference: Estimate
    num_paired: int
    num_scored: int
    num_unscored: int
    format_rate: float | None


def askings(config: AnalysisRun) -> list[Asking]:
    """The rows in the order of the paper, as far as there are models for them; the full model comes last.

    Raises ConfigError when an endpoint answers and other models are named.
    """
    others = {"base": config.base_path, "no_sft": config.no_sft_path, "no_rgrpo": config.sft_path}
    named = {name: path for name, path in others.items() if path}
    if named and not config.model_path:
        raise ConfigError(
            f"An endpoint serves one model; the rows {', '.join(named)} need models of their own. Leave them "
            "out, or give --model."
        )
    rows = [Asking("base", config.base_path, style="direct")] if config.base_path else []
    rows += [Asking.of(get_variant(name), config.model_path) for name in ("no_crop", "low_resolution")]
    rows += [Asking(name, path) for name, path in named.items() if name != "base"]
    return [*rows, Asking.of(FULL, config.model_path)]


def measure(source: Source, wanted: Sequence[Asking], *, seed: int) -> list[Row]:
    """The rows of a set, group by group."""
    measured = source.measure(wanted)
    styles = {asking.name: asking.style for asking in wanted}
    rows = []
    for index, full in enumerate(measured[FULL.name]):
        for asking in wanted:
            group = measured[asking.name][index]
            difference, num_paired = paired_bootstrap(group.values, full.values, seed=seed)
            rows.append(
                Row(
                    set=source.name,
                    questions=group.name,
                    variant=asking.name,
                    accuracy=group.accuracy,
                    difference=difference,
                    num_paired=num_paired,
                    num_scored=len(group.values),
                    num_unscored=len(group.attempts) - len(group.values),
                    format_rate=None if styles[asking.name] == "direct" else _format_rate(group),
                )
            )
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row, shares from 0 to 1."""
    return tables.to_csv(
        {
            "set": row.set,
            "questions": row.questions,
            "variant": row.variant,
            "accuracy": row.accuracy.value,
            "accuracy_low": row.accuracy.low,
            "accuracy_high": row.accuracy.high,
            "difference": row.difference.value,
            "difference_low": row.difference.low,
            "difference_high": row.difference.high,
            "paired": row.num_paired,
            "scored": row.num_scored,
            "unscored": row.num_unscored,
            "format_rate": row.format_rate,
        }
        for row in rows
    )


def to_text(rows: Sequence[Row]) -> str:
    """The table for a terminal: per set all its questions, then each kind; several sets get their mean."""
    lines = []
    for name, questions in dict.fromkeys((row.set, row.questions) for row in rows):
        found = [row for row in rows if (row.set, row.questions) == (name, questions)]
        lines += [f"{name}, {questions}, n = {found[-1].num_scored}", *map(_line, found), ""]
    sets = list(dict.fromkeys(row.set for row in rows))
    if len(sets) > 1:
        lines += [f"mean of {len(sets)} sets", *_mean_lines(rows), ""]
    lines.append(
        "[ , ]: 95 % interval (Wilson, or bootstrap); of differences to the full model: paired bootstrap."
    )
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    found, change = row.accuracy, row.difference
    rate = "" if row.format_rate is None else f"   format {100 * row.format_rate:5.1f} %"
    text = (
        f"  {LABELS[row.variant]:46} {100 * found.value:5.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    )
    if row.variant == FULL.name:
        return f"{text:96}{rate}".rstrip()
    interval = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    return f"{text:70}  {interval:24}{rate}".rstrip()


def _mean_lines(rows: Sequence[Row]) -> list[str]:
    whole = [row for row in rows if row.questions == ALL]
    variants = dict.fromkeys(row.variant for row in whole)
    means = {name: fmean(row.accuracy.value for row in whole if row.variant == name) for name in variants}
    return [
        f"  {LABELS[name]:46} {100 * mean:5.1f}  {100 * (mean - means[FULL.name]):+.1f}"
        for name, mean in means.items()
    ]


def _format_rate(group: Group) -> float | None:
    asked = [one.transcript for one in group.attempts if one.value is not None and one.transcript is not None]
    return fmean(is_well_formed(transcript.sampled_text) for transcript in asked) if asked else None
