"""Stage build_vlir: questions and interleaved rationales (paper 3.1)."""

from prefect import flow

from models.config import QuestionMix
from models.presets import load_preset
from models.run_config import VLIRRun
from tasks.data import build_data
from tasks.stage import StageOutput, perform


@flow(name="build-vlir")
async def build_vlir(
    preset: str = "tiny", overrides: list[str] | None = None, parent: str = ""
) -> StageOutput:
    """Build the data of a preset; artifact ``data``. ``parent`` is the tracked run to nest under."""
    run = load_preset(preset, overrides or ())
    config = VLIRRun(
        vlir=run.vlir,
        look=run.look,
        engine=run.engine,
        seed=run.seed,
        # Only what shapes the data: another learning rate must not draw other questions.
        rgrpo_questions=QuestionMix(
            num_questions=run.rgrpo.num_steps * run.rgrpo.questions_per_step, kinds=run.rgrpo.kinds
        ),
        evaluation_questions=QuestionMix(
            num_questions=run.evaluation.num_questions, kinds=run.evaluation.kinds
        ),
    )
    output: StageOutput = await perform(build_data, label="build_vlir", parent=parent, request=config)
    return output
