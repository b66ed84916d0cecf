"""Stage sft: supervised fine-tuning on the rationales (paper 3.2, A.2)."""

from prefect import flow

from flows.build_vlir import build_vlir
from flows.validate import validate
from models.presets import load_preset
from tasks.artifacts import ArtifactRef
from tasks.stage import StageOutput, perform
from tasks.training import base_model, train_sft


@flow(name="sft")
async def sft(
    preset: str = "tiny",
    overrides: list[str] | None = None,
    data: StageOutput | None = None,
    model: ArtifactRef | None = None,
    max_seconds: float = 0.0,
    label: str = "sft",
    parent: str = "",
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
    return output
