"""Stage evaluate: every model of a run, its controls and its ablations, on the held-out questions."""

from prefect import flow

from flows.build_vlir import build_vlir
from flows.training import train_models
from flows.validate import validate
from models.presets import load_preset
from tasks.evaluation import evaluate_models, with_champion
from tasks.stage import StageOutput, perform
from tasks.training import base_model
from tasks.versions import CHAMPION, find_version


@flow(name="evaluate")
async def evaluate(
    preset: str = "tiny",
    overrides: list[str] | None = None,
    data: StageOutput | None = None,
    models: dict[str, StageOutput] | None = None,
    parent: str = "",
) -> StageOutput:
    """Measure the models, training them first when none are given; artifact ``evaluation``.

    The present champion is measured on the same questions, so that promotion compares like with like.
    """
    run = load_preset(preset, overrides or ())
    if data is None:
        data = await build_vlir(preset, overrides, parent=parent)
        await validate(preset, overrides, data=data, parent=parent)
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
    return output
