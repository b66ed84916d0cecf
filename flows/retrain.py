"""Training again when a source has something new: look, and if there is anything, run the pipeline on it."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict

from flows.parameters import Overrides, PresetName, Stages
from flows.pipeline import Outcome, pipeline
from models.presets import load_preset
from tasks.retraining import Plan, look_for_news
from tasks.stage import perform


class Retrained(BaseModel):
    """What retraining came to; without an outcome nothing was new, and nothing was run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    outcome: Outcome | None = None

    def __str__(self) -> str:
        if self.outcome is None:
            return f"{self.plan} Nothing was run."
        verdict = self.outcome.verdict
        became = "is champion" if verdict.is_champion else "was not made champion"
        return f"{self.plan} Version {verdict.version} {became}."


@flow(name="retrain")
async def retrain(
    preset: PresetName = "tiny", overrides: Overrides = None, stages: Stages = ""
) -> "State[Retrained]":
    """Run the pipeline if a source has a version that nothing was trained on; else do nothing and say so.

    Earlier accepted records are kept, the champion may be the teacher (preset: ``retrain``), and the
    challenger is measured beside the champion as in every pipeline.
    """
    run = load_preset(preset, overrides or ())
    plan: Plan = await perform(look_for_news, label="look_for_news", parent="", preset=run)
    outcome = None
    if plan.news.is_news:
        outcome = await pipeline(preset, [*(overrides or ()), *plan.overrides], stages)
    found = Retrained(plan=plan, outcome=outcome)
    return Completed(message=str(found), data=found)
