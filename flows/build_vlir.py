"""Stage build_vlir: questions and interleaved rationales (paper 3.1)."""

from prefect import flow

from flows.parameters import Overrides, Parent, PresetName
from models.config import QuestionMix
from models.presets import load_preset
from tasks.data import VLIRRun, build_data
from tasks.deployed import hand_over
from tasks.stage import StageOutput, perform


@flow(name="build-vlir")
async def build_vlir(
    preset: PresetName = "tiny", overrides: Overrides = None, parent: Parent = ""
) -> StageOutput:
    """Build the data of a preset; artifact ``data``. ``parent`` is the tracked run to nest under."""
    run = load_preset(preset, overrides or ())
    config = VLIRRun(
        vlir=run.vlir,
        look=run.look,
        seed=run.seed,
        # Only what shapes the data: another learning rate must not draw other questions.
        rgrpo_questions=QuestionMix(
            num_questions=run.rgrpo.num_steps * run.rgrpo.questions_per_step, kinds=run.rgrpo.kinds
        ),
        evaluation_questions=QuestionMix(
            num_questions=run.evaluation.num_questions, kinds=run.evaluation.kinds
        ),
    )
    output: StageOutput = await perform(build_data, label="build_vlir", parent=parent, config=config)
    return await hand_over(output)
