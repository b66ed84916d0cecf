"""Stage validate: the gate that data must pass before any accelerator is used."""

from prefect import flow

from flows.build_vlir import build_vlir
from flows.parameters import Data, Overrides, Parent, PresetName
from models.presets import load_preset
from tasks.data import validate_data
from tasks.deployed import hand_over
from tasks.events import gate
from tasks.stage import StageOutput, perform
from tasks.verdicts import previous_verdict


@flow(name="validate")
async def validate(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    parent: Parent = "",
) -> StageOutput:
    """Judge the data, building it first when none is given. Raises GateError when the gate says no.

    It may not drift too far from the data of the champion, when that was made with the same preset.
    """
    run = load_preset(preset, overrides or ())
    built = data or await build_vlir(preset, overrides, parent=parent)
    data_ref = built.artifacts["data"]
    with gate("validate"):
        output: StageOutput = await perform(
            validate_data,
            label="validate",
            parent=parent,
            data=data_ref,
            config=run.validation,
            previous=previous_verdict(run, data_ref),
        )
    return await hand_over(output)
