"""Stage validate: the gate that data must pass before any accelerator is used."""

from prefect import flow

from flows.build_vlir import build_vlir
from models.presets import load_preset
from tasks.data import validate_data
from tasks.stage import StageOutput, perform


@flow(name="validate")
async def validate(
    preset: str = "tiny",
    overrides: list[str] | None = None,
    data: StageOutput | None = None,
    parent: str = "",
) -> StageOutput:
    """Judge the data, building it first when none is given. Raises GateError when the gate says no."""
    run = load_preset(preset, overrides or ())
    built = data or await build_vlir(preset, overrides, parent=parent)
    output: StageOutput = await perform(
        validate_data, label="validate", parent=parent, data=built.artifacts["data"], config=run.validation
    )
    return output
