"""The whole factory: data, gate, training with controls, evaluation, registry, promotion, report."""

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.build_vlir import build_vlir
from flows.evaluate import evaluate
from flows.parameters import Overrides, PresetName, Stages
from flows.promote import promote
from flows.training import train_models
from flows.validate import validate
from models.evaluation.report_inputs import StageTime
from models.presets import load_preset
from tasks.deployed import stage_at
from tasks.evidence import evidence_of
from tasks.preflight import preflight
from tasks.registry import Verdict, register
from tasks.report import closing_table, report, stage_times
from tasks.settings import Settings
from tasks.stage import perform, pipeline_run
from tasks.training import base_model


class Outcome(BaseModel):
    """What a run came to, for the person who started it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    stage_times: list[StageTime]
    verdict: Verdict
    report: str
    tracking_run: str


@flow(name="pipeline")
async def pipeline(preset: PresetName = "tiny", overrides: Overrides = None, stages: Stages = "") -> Outcome:
    """Run a preset to the end. Raises GateError when the data may not be trained on.

    With ``stages`` every stage is a run of its deployment of that name, on that deployment's work pool.
    """
    run = load_preset(preset, overrides or ())
    ready = preflight(run, Settings.read())
    with pipeline_run(run) as parent:
        data = await stage_at(stages, build_vlir)(preset, overrides, parent=parent)
        checked = await stage_at(stages, validate)(preset, overrides, data=data, parent=parent)
        models = await train_models(preset, overrides, data, parent, stages=stages)
        measured = await stage_at(stages, evaluate)(
            preset, overrides, data=data, models=models, parent=parent
        )
        outputs = {"build_vlir": data, "validate": checked, **models, "evaluate": measured}
        model = models["rgrpo"].artifacts["model"]
        evidence = evidence_of(
            run,
            base=base_model(run.model),
            outputs=outputs,
            model=model,
            preflight=ready,
            parent=parent,
        )
        version = await perform(register, label="register", parent=parent, model=model, evidence=evidence)
        verdict = await stage_at(stages, promote)(preset, overrides, version=version.number, parent=parent)
        page = await perform(
            report,
            label="report",
            parent=parent,
            preset=run,
            outputs=outputs,
            version=version,
            verdict=verdict,
        )
    return Outcome(
        table=closing_table(outputs),
        stage_times=stage_times(outputs, run),
        verdict=verdict,
        report=page,
        tracking_run=parent,
    )
