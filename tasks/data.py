"""Tasks of the stages build_vlir and validate: the data, and the gate before any accelerator."""

import asyncio
import json
import threading
import time
from pathlib import Path

from prefect import task

from models.config import Config, Look, QuestionMix, ValidationConfig, VLIRConfig
from models.errors import GateError
from models.run_config import ValidationRun
from models.rundir import Result, write_atomically
from models.vlir.build import build_vlir
from models.vlir.validate import ValidationVerdict
from tasks.artifacts import ArtifactRef
from tasks.caching import cached
from tasks.stage import StageOutput, StageRun, stage_run

_BUILD = "models.vlir.build"
_VALIDATE = "models.vlir.validate"
_VALIDATED = "validated.json"


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
        return stage.output(run, result, {"data": data})


@task(**cached("validate", _VALIDATE))
async def validate_data(
    data: ArtifactRef, config: ValidationConfig, label: str = "validate", parent: str = ""
) -> StageOutput:
    """The verdict on the data; artifact ``verdict``. Raises GateError when it says no."""
    async with stage_run("validate", label=label, parent=parent, params=config.model_dump()) as stage:
        request = ValidationRun(records_path=str(stage.store.fetch(data)), validation=config)
        run, result = await stage.child(_VALIDATE, request, inputs=(data,))
        write_atomically(run.path / _VALIDATED, json.dumps({"data": data.sha256}))
        verdict = stage.publish(run, [result.artifacts["verdict"], _VALIDATED], kind="verdict")
        output = stage.output(run, result, {"verdict": verdict})
        found = read_verdict(stage.store.fetch(verdict))
        if not found.passed:
            raise GateError(f"The data set may not be trained on. {found.summary()}")
        return output


def read_verdict(folder: Path) -> ValidationVerdict:
    """The verdict in an artifact of kind ``verdict``."""
    return ValidationVerdict.from_json((folder / "verdict.json").read_text())


def read_validated_data(folder: Path) -> str:
    """The digest of the data that the verdict in an artifact is about; empty when it does not say."""
    path = folder / _VALIDATED
    return str(json.loads(path.read_text())["data"]) if path.is_file() else ""


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
