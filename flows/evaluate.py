"""Stage evaluate: every model of a run, its controls and its ablations, on the held-out questions."""

from pathlib import Path

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Data, Models, Overrides, Parent, PresetName
from flows.training import train_models
from flows.validate import validate
from models.presets import load_preset
from tasks.artifacts import reference
from tasks.deployed import hand_over
from tasks.evaluation import evaluate_models, with_champion
from tasks.report import report
from tasks.stage import StageOutput, perform
from tasks.training import base_model
from tasks.versions import CHAMPION, find_version


@flow(name="evaluate")
async def evaluate(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    models: Models = None,
    parent: Parent = "",
) -> StageOutput:
    """Measure the models, training them first when none are given; artifact ``evaluation``.

    When none are given the run ends here, with a page of its own: artifact ``report``.

    The present champion is measured on the same questions, so that promotion compares like with like.
    """
    run = load_preset(preset, overrides or ())
    outputs: dict[str, StageOutput] = {}
    if data is None:
        data = await build_vlir(preset, overrides, parent=parent)
        outputs["validate"] = await validate(preset, overrides, data=data, parent=parent)
    trained = models or await train_models(preset, overrides, data, parent)
    champion = find_version(CHAMPION)
    output: StageOutput = await perform(
        evaluate_models,
        label="evaluate",
        parent=parent,
        models=with_champion(
            {
                "base": base_model(run.model),
                **{name: made.artifacts["model"] for name, made in trained.items()},
            },
            champion.model if champion else None,
        ),
        data=data.artifacts["data"],
        config=run.evaluation,
        engine=run.engine,
        look=run.look,
        seed=run.seed,
        with_ablations=run.controls,
    )
    if models is not None or "validate" not in outputs:
        return await hand_over(output)
    outputs |= {"build_vlir": data, **trained, "evaluate": output}
    page = await perform(report, label="report", parent=parent, preset=run, outputs=outputs)
    kept = reference(Path(page).parent, kind="report")
    return await hand_over(output.model_copy(update={"artifacts": {**output.artifacts, "report": kept}}))
