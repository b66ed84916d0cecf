"""Tasks without work, for :mod:`tests.benchmarks.orchestration`; imported once Prefect has a server."""

import time

from prefect import flow, task

from models.config import Preset
from tasks.caching import cached
from tasks.stage import StageOutput, perform, pipeline_run, stage_run


@task
async def bare(number: int) -> int:
    """What Prefect alone costs."""
    return number


@task(**cached("idle", "models.region"))
async def idle(number: int, label: str, parent: str) -> StageOutput:
    """What every stage does around its work, and no work."""
    async with stage_run("idle", label=label, parent=parent, params={"number": number}) as stage:
        return StageOutput(artifacts={}, metrics={}, seconds=0.0, tracking_run=stage.tracked.id)


@flow(name="idle")
async def idle_flow(preset: Preset, number: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each of so many tasks of a stage, of bare ones, and of the first taken from the cache."""
    stages, alone, again = [], [], []
    with pipeline_run(preset) as parent:
        for count in range(number):
            began = time.perf_counter()
            await perform(idle, label="idle", parent=parent, number=count)
            stages.append(time.perf_counter() - began)
        for count in range(number):
            began = time.perf_counter()
            await bare(count)
            alone.append(time.perf_counter() - began)
        for count in range(number):
            began = time.perf_counter()
            await perform(idle, label="idle", parent=parent, number=count)
            again.append(time.perf_counter() - began)
    return stages, alone, again
