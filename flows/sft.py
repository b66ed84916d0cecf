"""Stage sft: supervised fine-tuning on the rationales (paper 3.2, A.2)."""

from typing import Annotated

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Data, Label, Model, Overrides, Parent, PresetName, hint
from flows.validate import validate
from models.presets import load_preset
from tasks.deployed import hand_over
from tasks.stage import StageOutput, perform
from tasks.training import base_model, train_sft

MaxSeconds = Annotated[
    float, hint("Train this many seconds instead of the preset's epochs; 0 for the epochs.", minimum=0)
]


@flow(name="sft")
async def sft(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    model: Model = None,
    max_seconds: MaxSeconds = 0.0,
    label: Label = "sft",
    parent: Parent = "",
) -> StageOutput:
    """Train on validated data; artifact ``model``.

    ``model`` is where to start, by default the base. With ``max_seconds`` it trains that long (the control
    "more SFT").
    """
    run = load_preset(preset, overrides or ())
    if data is None:
        data = await build_vlir(preset, overrides, parent=parent)
        await validate(preset, overrides, data=data, parent=parent)
    output: StageOutput = await perform(
        train_sft,
        label=label,
        parent=parent,
        model=model or base_model(run.model),
        data=data.artifacts["data"],
        config=run.sft.model_copy(update={"max_seconds": max_seconds}) if max_seconds else run.sft,
        look=run.look,
        freeze_vision=run.model.freeze_vision,
        seed=run.seed,
    )
    return await hand_over(output)
