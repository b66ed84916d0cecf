"""An analysis of the paper: `vlm-r3 analyse table2`, `figure4` or `figure5`."""

import asyncio

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Overrides, Parent, PresetName
from flows.training import train_models
from flows.validate import validate
from models.presets import load_preset
from models.vlir.layout import QUESTIONS
from tasks.analysis import run_analysis
from tasks.analysis_request import Analysis, analysis_of
from tasks.settings import Settings
from tasks.stage import StageOutput, perform, read_store
from tasks.training import base_model


@flow(name="analyse")
async def analyse(
    name: Analysis,
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    models: dict[str, str] | None = None,
    benchmarks: list[tuple[str, str]] | None = None,
    allow_partial: bool = False,
    num_questions: int = 0,
    parent: Parent = "",
) -> StageOutput:
    """Make one analysis; artifact ``analysis``.

    Without benchmarks it asks the held-out questions of a run, and without ``models`` it is about the models
    of that run: what the workspace already holds of them is used, the rest is made first.
    """
    run = load_preset(preset, overrides or ())
    settings = Settings.read()
    named = {row: model for row, model in (models or {}).items() if model}
    questions_path = ""
    if not benchmarks:
        data = await build_vlir(preset, overrides, parent=parent)
        questions_path = str(read_store().fetch(data.artifacts["data"]) / QUESTIONS / "test.parquet")
        if not named:
            await validate(preset, overrides, data=data, parent=parent)
            named = await _models_of_a_run(name, preset, overrides, data, parent)
    request = await asyncio.to_thread(
        analysis_of,
        name,
        run,
        models=named,
        questions_path=questions_path,
        benchmarks=benchmarks or (),
        allow_partial=allow_partial,
        num_questions=num_questions,
        settings=settings,
    )
    output: StageOutput = await perform(run_analysis, label="analyse", parent=parent, request=request)
    return output


async def _models_of_a_run(
    name: Analysis, preset: str, overrides: list[str] | None, data: StageOutput, parent: str
) -> dict[str, str]:
    """Folders of the models that the analysis is about; only Table 2 needs the controls."""
    chosen = [*(overrides or ()), *([] if name == "table2" else ["controls=false"])]
    trained = await train_models(preset, chosen, data, parent)
    fetched = {row: str(read_store().fetch(made.artifacts["model"])) for row, made in trained.items()}
    if name != "table2":
        return {"model_path": fetched["rgrpo"]}
    base = str(read_store().fetch(base_model(load_preset(preset, overrides or ()).model)))
    return {
        "model_path": fetched["rgrpo"],
        "base_path": base,
        "sft_path": fetched["sft"],
        "no_sft_path": fetched.get("no_sft", ""),
    }
