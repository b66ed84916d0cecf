"""One self-contained HTML page about a pipeline run: is the model better, and what did it look at?

The page needs no network and opens from disk. ``report_template.html`` holds the frame, the style and the
script; :mod:`models.evaluation.report_sections` fills the frame. Nothing is computed that ``metrics.json``
does not say.
"""

import json
import re
from html import escape
from pathlib import Path

from models.errors import ScoringError
from models.evaluation import report_sections as sections
from models.evaluation.gallery import GalleryRow, gallery
from models.evaluation.predictions import read_predictions
from models.evaluation.report_inputs import ReportInputs
from models.records import read_questions
from models.rundir import write_atomically

TEMPLATE = Path(__file__).parent / "report_template.html"
MAX_GALLERY_BYTES = 3_000_000
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(path: Path, inputs: ReportInputs) -> int:
    """Write the page and return its size in bytes. Raises ScoringError when the headline was not measured."""
    page = render(inputs)
    write_atomically(path, page)
    return len(page.encode())


def render(inputs: ReportInputs) -> str:
    """The page as text. Raises ScoringError when the two headline rows were not compared."""
    found = inputs.results.comparison(*inputs.headline)
    if found is None:
        compared = [(c.new, c.old) for c in inputs.results.comparisons if not c.kind]
        raise ScoringError(
            f"The rows {inputs.headline} were not compared, so the report has no headline. Compared were "
            f"{compared}: name one of these pairs, or add yours to EvaluationRun.comparisons."
        )
    parts = {
        "title": escape(inputs.title),
        "outcome": sections.outcome(inputs, found),
        "results": sections.results(inputs.results),
        "training": sections.training(inputs),
        "data": sections.data(inputs),
        "time": sections.time(inputs.stages),
        "facts": sections.facts(inputs.facts),
        "gallery": _gallery(inputs),
    }
    # In one pass, so that nothing a model wrote is taken for a place in the frame.
    return _PLACE.sub(lambda place: parts[place[1]], TEMPLATE.read_text(encoding="utf-8"))


def _gallery(inputs: ReportInputs) -> str:
    """The gallery's data as JSON, safe inside a script element: without ``<`` nothing can end it."""
    rows = [
        GalleryRow(
            row.name,
            row.label,
            row.crop_source,
            {p.question_id: p for p in read_predictions(inputs.predictions[row.name]) if p.temperature == 0},
        )
        for row in inputs.results.variants
        if row.name in inputs.predictions
    ]
    data = gallery(
        rows,
        {question.id: question for question in read_questions(inputs.questions_path)},
        look=inputs.look,
        num_questions=inputs.num_gallery_questions,
        max_bytes=MAX_GALLERY_BYTES,
    )
    data["headline"] = inputs.headline
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
