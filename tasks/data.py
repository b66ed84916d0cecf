"""Tasks of the stages build_vlir and validate: the data, and the gate before any accelerator."""

import asyncio
import threading
import time
from pathlib import Path

from prefect import task

from models.config import Config, Look, QuestionMix, ValidationConfig, VLIRConfig
from models.errors import GateError
from models.run_config import ValidationRun
from models.rundir import Result
from models.vlir.build import build_vlir
from models.vlir.statistics_files import NAME, STATISTICS
from tasks.artifacts import ArtifactRef
from tasks.caching import cached
from tasks.shown import show_markdown
from tasks.stage import StageOutput, StageRun, stage_run
from tasks.verdicts import read_verdict, show_verdict, statistics_path

_BUILD = "models.vlir.build"
_VALIDATE = "models.vlir.validate"


class VLIRRun(Config):
    """What the stage build_vlir is asked for, as its run directory records it."""

    vlir: VLIRConfig
    look: Look
    seed: int
    rgrpo_questions: QuestionMix
    evaluation_questions: QuestionMix


@task(**cached("build_vlir", _BUILD))
async def build_data(config: VLIRRun, label: str = "build_vlir", parent: str = "") -> StageOutput:
    """Questions and rationales; artifact ``data``."""
    async with stage_run("build_vlir", label=label, parent=parent, params=config.model_dump()) as stage:
        run = stage.directory(_BUILD, config, inputs=())
        started = time.monotonic()
        out = run.path / "vlir"
        metrics = await _in_thread(stage, config, out)
        run.log(0, metrics)
        stage.measured({"step": 0, "time": time.time(), **metrics})
        result = Result(
            status="done",
            artifacts={"data": "vlir"},
            metrics=metrics,
            seconds=round(time.monotonic() - started, 3),
        )
        run.finish(result)
        data = stage.publish(run, ["vlir"], kind="vlir")
        await _show_statistics(stage, out / STATISTICS)
        return stage.output(run, result, {"data": data})


@task(**cached("validate", _VALIDATE))
async def validate_data(
    data: ArtifactRef,
    config: ValidationConfig,
    previous: ArtifactRef | None = None,
    label: str = "validate",
    parent: str = "",
) -> StageOutput:
    """The verdict on the data; artifact ``verdict``, and ``data_docs`` where they are wanted.

    ``previous`` is the verdict on the previous version. Raises GateError when the verdict says no.
    """
    async with stage_run("validate", label=label, parent=parent, params=config.model_dump()) as stage:
        request = ValidationRun(
            records_path=str(stage.store.fetch(data)),
            validation=config,
            previous_path=str(statistics_path(previous, stage.settings)) if previous else "",
        )
        inputs = [data] if previous is None else [data, previous]
        run, result = await stage.child(_VALIDATE, request, inputs=inputs)
        kept = {name: stage.publish(run, [path], kind=name) for name, path in result.artifacts.items()}
        output = stage.output(run, result, kept)
        folder = run.path / result.artifacts["verdict"]
        found = read_verdict(folder)
        await show_verdict(run.path / "report.html", folder, found, stage.tracked)
        if not found.passed:
            raise GateError(f"The data set may not be trained on. {found.summary()}")
        return output


async def _show_statistics(stage: StageRun, folder: Path) -> None:
    """Figure 3 of the data, with the tracked run and in Prefect."""
    for path in sorted(folder.glob(f"{NAME}.*")):
        stage.tracked.log_file(path)
        if path.suffix == ".md":
            await show_markdown("data statistics", path.read_text(), description="Figure 3 of the data")


class _Stopped(Exception):
    """Nobody waits for the data any more."""


async def _in_thread(stage: StageRun, config: VLIRRun, out: Path) -> dict[str, float]:
    """Build beside the event loop, which keeps the display alive and can be cancelled."""
    stopped = threading.Event()
    loop = asyncio.get_running_loop()

    def progress(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped
        line = {"step": done, "time": time.time(), "progress/done": done, "progress/total": total}
        loop.call_soon_threadsafe(stage.measured, line)

    def build() -> dict[str, float]:
        return build_vlir(
            config.vlir,
            config.look,
            seed=config.seed,
            out=out,
            rgrpo_questions=config.rgrpo_questions,
            evaluation_questions=config.evaluation_questions,
            progress=progress,
        ).metrics()

    try:
        return await asyncio.to_thread(build)
    finally:
        stopped.set()
