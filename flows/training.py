"""All models of a run: SFT, R-GRPO from it, and the two controls that say what each was worth."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from flows.rgrpo import rgrpo
from flows.sft import sft
from models.presets import load_preset
from tasks.deployed import stage_at
from tasks.stage import StageOutput
from tasks.training import base_model, training_seconds


async def train_models(
    preset: str, overrides: list[str] | None, data: StageOutput, parent: str, *, stages: str = ""
) -> dict[str, StageOutput]:
    """The trained models by row: ``sft``, ``rgrpo``, and with controls ``more_sft`` and ``no_sft``.

    "More SFT" goes on from the SFT model for as long as R-GRPO trained; "no SFT" is R-GRPO from the base.
    What does not depend on each other runs together where cores and memory allow. ``stages`` names the
    deployments that do the work; this process does when it is empty.
    """
    run = load_preset(preset, overrides or ())
    tune, improve = stage_at(stages, sft), stage_at(stages, rgrpo)
    with_data: dict[str, Any] = {"data": data, "parent": parent}
    tuned = await tune(preset, overrides, **with_data)
    start = tuned.artifacts["model"]
    if not run.controls:
        return {"sft": tuned, "rgrpo": await improve(preset, overrides, model=start, **with_data)}

    async def improved_and_control() -> tuple[StageOutput, StageOutput]:
        improved = await improve(preset, overrides, model=start, **with_data)
        seconds = training_seconds(improved)
        return improved, await tune(
            preset, overrides, model=start, max_seconds=seconds, label="more_sft", **with_data
        )

    (improved, more_sft), no_sft = await together(
        improved_and_control(),
        improve(
            preset, overrides, model=base_model(run.model), label="no_sft", is_watched=False, **with_data
        ),
    )
    return {"sft": tuned, "more_sft": more_sft, "rgrpo": improved, "no_sft": no_sft}


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of all, in order. When one fails the others are cancelled, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            started = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [one.result() for one in started]
