"""Stage validate: the gate that data must pass before any accelerator is used."""

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Data, Overrides, Parent, PresetName
from models.presets import load_preset
from tasks.data import validate_data
from tasks.deployed import hand_over
from tasks.events import gate
from tasks.stage import StageOutput, perform


@flow(name="validate")
async def validate(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    parent: Parent = "",
) -> StageOutput:
    """Judge the data, building it first when none is given. Raises GateError when the gate says no."""
    run = load_preset(preset, overrides or ())
    built = data or await build_vlir(preset, overrides, parent=parent)
    with gate("validate"):
        output: StageOutput = await perform(
            validate_data,
            label="validate",
            parent=parent,
            data=built.artifacts["data"],
            config=run.validation,
        )
    return await hand_over(output)
