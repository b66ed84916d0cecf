"""Stage build_vlir: questions and interleaved rationales (paper 3.1)."""

from prefect import flow

from flows.parameters import Overrides, Parent, PresetName
from models.presets import load_preset
from tasks.data import build_data
from tasks.deployed import hand_over
from tasks.settings import Settings
from tasks.stage import StageOutput, perform
from tasks.vlir_inputs import build_request


@flow(name="build-vlir")
async def build_vlir(
    preset: PresetName = "tiny", overrides: Overrides = None, parent: Parent = ""
) -> StageOutput:
    """Build the data of a preset; artifact ``data``. ``parent`` is the tracked run to nest under."""
    run = load_preset(preset, overrides or ())
    request = build_request(run, Settings.read())
    output: StageOutput = await perform(build_data, label="build_vlir", parent=parent, request=request)
    return await hand_over(output)
