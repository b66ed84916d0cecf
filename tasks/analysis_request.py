"""What an analysis of the paper is asked to do, checked before anything is started."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from models.config import Preset
from models.errors import ConfigError
from models.evaluation.variants import LEVELS
from models.run_config import AnalysisRun
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import check_request, request_of
from tasks.model_source import check_model, find_model
from tasks.settings import Settings

Analysis = Literal["table2", "figure4", "figure5"]
# Rows of Table 2 that are models of their own, by the field of `AnalysisRun` that names their folder.
ROWS = ("base_path", "sft_path", "no_sft_path")
# A forward pass per answer, and the curves are means: more change little.
NUM_FIGURE5_QUESTIONS = 96


def check_analysis(
    name: Analysis,
    preset: Preset,
    *,
    models: Mapping[str, str],
    benchmarks: Sequence[tuple[str, str]] = (),
    allow_partial: bool = False,
    settings: Settings,
) -> None:
    """Everything that can be told without fetching data or weights; ``models`` as for :func:`analysis_of`.

    Raises ConfigError for a model that there is not, a benchmark that is not what was published, an endpoint
    where weights are needed, or rows that the analysis does not have.
    """
    rows = [field for field in ROWS if models.get(field)]
    if rows and name != "table2":
        raise ConfigError(f"{', '.join(rows)} are rows of table2; {name} is about one model. Leave them out.")
    if rows and not models.get("model_path") and not benchmarks:
        raise ConfigError(f"{', '.join(rows)} are compared with the full model. Name it too: --model.")
    if preset.engine.kind == "http" and (rows or not benchmarks or name == "figure5"):
        raise ConfigError(
            "An endpoint answers benchmarks for table2 (crops only) and figure4; other models, held-out "
            "questions and attention need weights. Give --model instead of --endpoint."
        )
    for wanted in filter(None, models.values()):
        check_model(wanted, settings)
    for benchmark, data in benchmarks:
        check_request(benchmark, data, _about(preset, models), allow_partial=allow_partial, settings=settings)


def analysis_of(
    name: Analysis,
    preset: Preset,
    *,
    models: Mapping[str, str],
    questions_path: str = "",
    benchmarks: Sequence[tuple[str, str]] = (),
    allow_partial: bool = False,
    num_questions: int = 0,
    settings: Settings,
) -> AnalysisRun:
    """The configuration of the child, data and models being on this machine.

    ``models`` maps ``model_path`` and ``ROWS`` to names of models; without ``model_path`` the preset's model
    or endpoint answers. ``benchmarks`` are (name, place of its files); 0 questions are the usual number.
    """
    about = _about(preset, models)
    pinning = Pinning(settings.benchmark_lock)
    sets = [
        request_of(
            benchmark,
            data,
            about,
            style="look-again",
            allow_partial=allow_partial,
            settings=settings,
            pinning=pinning,
        )
        for benchmark, data in benchmarks
    ]
    usual = NUM_FIGURE5_QUESTIONS if name == "figure5" else preset.evaluation.num_questions
    is_endpoint = preset.engine.kind == "http"
    try:
        return AnalysisRun(
            analysis=name,
            model_path="" if is_endpoint else find_model(about.model.path, settings).path,
            **{field: find_model(models[field], settings).path for field in ROWS if models.get(field)},
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


def _about(preset: Preset, models: Mapping[str, str]) -> Preset:
    """The preset with the model that the analysis is about."""
    path = models.get("model_path")
    if not path:
        return preset
    return preset.model_copy(update={"model": preset.model.model_copy(update={"path": path})})
