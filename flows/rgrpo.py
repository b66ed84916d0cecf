"""Stage rgrpo: region-conditioned policy optimisation (paper 3.3, A.3)."""

from typing import Any

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Data, Label, Model, Overrides, Parent, PresetName, Watched
from flows.sft import sft
from flows.validate import validate
from models.presets import load_preset
from tasks.artifacts import ArtifactRef
from tasks.deployed import hand_over
from tasks.stage import StageOutput, perform
from tasks.training import train_rgrpo


@flow(name="rgrpo")
async def rgrpo(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    model: Model = None,
    label: Label = "rgrpo",
    parent: Parent = "",
    is_watched: Watched = True,
) -> StageOutput:
    """Improve a model; artifact ``model``. It starts from ``model``, by default what the stage sft made.

    Without ``is_watched`` there are no preflight and no guards: a control is measured whatever it does.
    """
    inputs = await what_it_takes(preset, overrides, data, model, parent)
    if not is_watched:
        inputs["config"] = inputs["config"].without_trust()
    output: StageOutput = await perform(train_rgrpo, label=label, parent=parent, **inputs)
    return await hand_over(output)


async def what_it_takes(
    preset: str, overrides: list[str] | None, data: StageOutput | None, model: ArtifactRef | None, parent: str
) -> dict[str, Any]:
    """The inputs of R-GRPO's tasks; data and model are made where they are not given."""
    run = load_preset(preset, overrides or ())
    run.rgrpo.require_fit_with(run.engine)  # before data are made, which takes long
    if data is None:
        data = await build_vlir(preset, overrides, parent=parent)
        await validate(preset, overrides, data=data, parent=parent)
    if model is None:
        model = (await sft(preset, overrides, data=data, parent=parent)).artifacts["model"]
    return {
        "model": model,
        "data": data.artifacts["data"],
        "config": run.rgrpo,
        "engine": run.engine,
        "look": run.look,
        "freeze_vision": run.model.freeze_vision,
        "seed": run.seed,
    }
