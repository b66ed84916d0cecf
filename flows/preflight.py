"""What must hold before R-GRPO is begun, tried on one real batch of it."""

from prefect import flow

from flows.parameters import Data, Model, Overrides, Parent, PresetName
from flows.rgrpo import what_it_takes
from tasks.deployed import hand_over
from tasks.stage import StageOutput, perform
from tasks.training import look_before


@flow(name="preflight")
async def preflight(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    data: Data = None,
    model: Model = None,
    parent: Parent = "",
) -> StageOutput:
    """Look before R-GRPO starts from ``model``, by default what the stage sft made; artifact ``preflight``.

    Raises GateError that says what is broken.
    """
    inputs = await what_it_takes(preset, overrides, data, model, parent)
    output: StageOutput = await perform(look_before, label="preflight", parent=parent, **inputs)
    return await hand_over(output)
