"""The report of a pipeline or an evaluation: is the model better, and what did it look at?

Nothing is computed that ``metrics.json`` does not say. :mod:`models.evaluation.report_sections` makes the
parts, :mod:`models.evaluation.report_page` the page around them.
"""

from pathlib import Path

from models.errors import ScoringError
from models.evaluation import report_sections as sections
from models.evaluation.gallery import GallerySet, gallery
from models.evaluation.gallery_sources import evaluated, rolled_out
from models.evaluation.report_inputs import ReportInputs
from models.evaluation.report_page import Page, Section

# Of the trajectories in the gallery, one in so many is a rollout of R-GRPO.
_ROLLOUT_SHARE = 4


def write_report(path: Path, inputs: ReportInputs) -> int:
    """Write the page and return its size in bytes. Raises ScoringError when the headline was not measured."""
    return page_of(inputs).write(path)


def page_of(inputs: ReportInputs) -> Page:
    """The page. Raises ScoringError when the two headline rows were not compared."""
    found = inputs.results.comparison(*inputs.headline)
    if found is None:
        compared = [(c.new, c.old) for c in inputs.results.comparisons if not c.kind]
        raise ScoringError(
            f"The rows {inputs.headline} were not compared, so the report has no headline. Compared were "
            f"{compared}: name one of these pairs, or add yours to EvaluationRun.comparisons."
        )
    price = inputs.config.price_per_process_hour
    parts = [
        Section("outcome", "Outcome", sections.outcome(inputs, found)),
        Section("results", "Results", sections.results(inputs.results), "Results"),
        Section("figures", "Figures", sections.drawn(inputs), "The paper's figures for this run"),
        Section("training", "Training", sections.training(inputs), "Training"),
        Section("data", "Data", sections.data(inputs), "Data"),
        Section(
            "time",
            "Time and cost",
            sections.time(inputs.stages, inputs.rgrpo_metrics, price=price),
            "Where the time went",
        ),
        Section("origin", "Origin", sections.origin(inputs.facts), "Where this comes from"),
    ]
    data = gallery(_sets(inputs), look=inputs.look, max_bytes=inputs.config.max_picture_bytes)
    num_questions = max(row.overall.num_scored for row in inputs.results.variants)
    subtitle = f"{len(inputs.results.variants)} rows on {num_questions} held-out questions"
    return Page(inputs.title, subtitle, [part for part in parts if part.html], data)


def _sets(inputs: ReportInputs) -> list[GallerySet]:
    num, rollouts = inputs.config.num_trajectories, inputs.rollouts
    has_rollouts = bool(rollouts) and inputs.rollout_questions_path is not None
    rows = [
        (row.name, row.label, row.crop_source, inputs.predictions[row.name])
        for row in inputs.results.variants
        if row.name in inputs.predictions
    ]
    sets = [
        evaluated(
            rows,
            inputs.questions_path,
            compare=inputs.headline,
            num_trajectories=num - num // _ROLLOUT_SHARE if has_rollouts else num,
        )
    ]
    if rollouts and inputs.rollout_questions_path is not None:
        sets += rolled_out(
            rollouts,
            inputs.rollout_questions_path,
            crop_source=inputs.look.crop_source,
            num_trajectories=num // _ROLLOUT_SHARE,
        )
    return sets
