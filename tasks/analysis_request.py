"""What an analysis of the paper is asked to do, checked before anything is started."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from models.config import Preset, resolve_model_path
from models.errors import ConfigError
from models.evaluation.variants import LEVELS
from models.run_config import AnalysisRun
from tasks.benchmark_request import absolute, request_of

Analysis = Literal["table2", "figure4", "figure5"]
ANALYSES: Mapping[Analysis, str] = {
    "table2": "what the crops, VLIR fine-tuning and R-GRPO are worth (paper 4.4)",
    "figure4": "accuracy when a share of the crops misses (4.5.1)",
    "figure5": "attention on image and crops as the answer grows (4.5.2)",
}
# Rows of Table 2 that are models of their own, by the field of `AnalysisRun` that names their folder.
ROWS = ("base_path", "sft_path", "no_sft_path")
# A forward pass per answer, and the curves are means: more change little.
NUM_FIGURE5_QUESTIONS = 64


def analysis_of(
    name: Analysis,
    preset: Preset,
    *,
    models: Mapping[str, str],
    questions_path: str = "",
    benchmarks: Sequence[tuple[str, str]] = (),
    allow_partial: bool = False,
    num_questions: int = 0,
) -> AnalysisRun:
    """The configuration of the child. ``models`` maps ``model_path`` and ``ROWS`` to folders; without
    ``model_path`` the preset's model or endpoint answers. ``benchmarks`` are (name, folder of its files).

    0 questions are the usual number. Raises ConfigError for a folder that is no model, a benchmark that is
    not what was published, or rows that the analysis does not have.
    """
    rows = [field for field in ROWS if models.get(field)]
    if rows and name != "table2":
        raise ConfigError(f"{', '.join(rows)} are rows of table2; {name} is about one model. Leave them out.")
    paths = {field: path for field, path in models.items() if path}
    for path in paths.values():
        resolve_model_path(path)
    if "model_path" in paths:
        preset = preset.model_copy(
            update={"model": preset.model.model_copy(update={"path": paths["model_path"]})}
        )
    is_endpoint = preset.engine.kind == "http"
    sets = [
        request_of(one, data, preset, style="look-again", allow_partial=allow_partial)
        for one, data in benchmarks
    ]
    usual = NUM_FIGURE5_QUESTIONS if name == "figure5" else preset.evaluation.num_questions
    try:
        return AnalysisRun(
            analysis=name,
            model_path="" if is_endpoint else absolute(preset.model.path),
            **{field: absolute(paths[field]) for field in rows},
            questions_path=questions_path,
            benchmarks=tuple(sets),
            num_questions=num_questions or usual,
            levels=LEVELS,
            look=preset.look,
            engine=preset.engine,
            evaluation=preset.evaluation,
            seed=preset.seed,
        )
    except ValidationError as error:
        raise ConfigError(f"Analysis {name!r} cannot be made so: {error}") from error
