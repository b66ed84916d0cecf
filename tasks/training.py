"""Tasks of the stages sft and rgrpo: train in a child process, keep the model."""

import json
import logging
from pathlib import Path
from typing import Any

from prefect import task

from models.check import PREFLIGHT
from models.config import EngineConfig, Look, ModelConfig, RGRPOConfig, SFTConfig, resolve_model_path
from models.errors import TrainingError
from models.records import count_questions, count_records
from models.run_config import RGRPORun, SFTRun
from models.rundir import PROBES, ROLLOUTS, RunDir
from models.vlir.layout import QUESTIONS, RECORDS, VALIDATION
from tasks.artifacts import ArtifactRef, reference
from tasks.caching import cached
from tasks.stage import StageOutput, StageRun, read_store, stage_run

log = logging.getLogger(__name__)

_SFT = "models.sft.train"
_RGRPO = "models.rgrpo.train"
_PREFLIGHT = "models.rgrpo.preflight"


def training_seconds(output: StageOutput) -> float:
    """How long R-GRPO trained, rollouts included and loading left out: what equal time means.

    Raises TrainingError when the run's metrics do not say.
    """
    path = read_store().fetch(output.artifacts["record"]) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # A resumed run logs the steps after its checkpoint again: what was said last of a step counts.
    last: dict[int, dict[str, float]] = {}
    for line in lines:
        last.setdefault(line["step"], {}).update(line)
    seconds = sum(
        value
        for line in last.values()
        for name, value in line.items()
        if name.startswith("time/") and name.endswith("_seconds")
    )
    if not seconds:
        raise TrainingError(f"{path} has no metrics time/..._seconds, so equal time cannot be told.")
    return round(seconds, 1)


def base_model(config: ModelConfig) -> ArtifactRef:
    """The base model where it lies, with the digest of its files."""
    return reference(resolve_model_path(config.path), kind="model")


@task(**cached("sft", _SFT))
async def train_sft(
    model: ArtifactRef,
    data: ArtifactRef,
    config: SFTConfig,
    look: Look,
    freeze_vision: bool,
    seed: int,
    label: str = "sft",
    parent: str = "",
) -> StageOutput:
    """A model fine-tuned on the rationales; artifact ``model``."""
    async with stage_run("sft", label=label, parent=parent, params=config.model_dump()) as stage:
        folder = stage.store.fetch(data)
        request = SFTRun(
            model_path=str(stage.store.fetch(model)),
            records_path=str(folder / RECORDS),
            # A small set of one's own may leave none; training then goes without a validation loss.
            validation_path=str(folder / VALIDATION) if count_records(folder / VALIDATION) else "",
            questions_path=_held_out(folder),
            features_path=str(stage.settings.features),
            look=look,
            sft=config,
            freeze_vision=freeze_vision,
            seed=seed,
        )
        run, result = await stage.child(
            _SFT,
            request,
            inputs=(model, data),
            num_ranks=config.num_ranks,
            num_threads=config.num_threads,
            named_by=request.anywhere(),
            keep_checkpoints=config.keep_checkpoints,
        )
        trained = stage.publish(run, [result.artifacts["model"]], kind="model")
        return stage.output(run, result, {"model": trained})


@task(**cached("rgrpo", _RGRPO))
async def train_rgrpo(
    model: ArtifactRef,
    data: ArtifactRef,
    config: RGRPOConfig,
    engine: EngineConfig,
    look: Look,
    freeze_vision: bool,
    seed: int,
    label: str = "rgrpo",
    parent: str = "",
) -> StageOutput:
    """A model improved by R-GRPO on the training questions; artifacts ``model`` and, if any were sampled
    here, ``rollouts``."""
    async with stage_run("rgrpo", label=label, parent=parent, params=config.model_dump()) as stage:
        request = _rgrpo_run(
            stage, model, data, rgrpo=config, engine=engine, look=look, freeze_vision=freeze_vision, seed=seed
        )
        run, result = await stage.child(
            _RGRPO,
            request,
            inputs=(model, data),
            num_ranks=config.num_ranks,
            num_threads=config.num_threads,
            named_by=request.anywhere(),
            keep_checkpoints=config.keep_checkpoints,
        )
        trained = stage.publish(run, [result.artifacts["model"]], kind="model")
        return stage.output(run, result, {"model": trained, **publish_rollouts(stage, run)})


def publish_rollouts(stage: StageRun, run: RunDir) -> dict[str, ArtifactRef]:
    """The rollouts that were sampled here, and the answers of the probes; none where a run only ended that
    another machine had trained."""
    if not (run.path / ROLLOUTS).is_dir():
        log.warning("%s keeps no rollouts: its steps were taken elsewhere", run.path)
        return {}
    folders = [name for name in (ROLLOUTS, PROBES) if (run.path / name).is_dir()]
    return {ROLLOUTS: stage.publish(run, folders, kind=ROLLOUTS)}


@task
async def look_before(
    model: ArtifactRef,
    data: ArtifactRef,
    config: RGRPOConfig,
    engine: EngineConfig,
    look: Look,
    freeze_vision: bool,
    seed: int,
    label: str = "preflight",
    parent: str = "",
) -> StageOutput:
    """Everything that the stage rgrpo looks at before it begins; artifact ``preflight``.

    Raises GateError when it would not begin.
    """
    async with stage_run("preflight", label=label, parent=parent, params=config.model_dump()) as stage:
        request = _rgrpo_run(
            stage, model, data, rgrpo=config, engine=engine, look=look, freeze_vision=freeze_vision, seed=seed
        )
        run, result = await stage.child(
            _PREFLIGHT,
            request,
            inputs=(model, data),
            num_ranks=config.num_ranks,
            num_threads=config.num_threads,
            is_repeated=True,
        )
        return stage.output(run, result, {"preflight": stage.publish(run, [PREFLIGHT], kind="preflight")})


def _rgrpo_run(stage: StageRun, model: ArtifactRef, data: ArtifactRef, **settings: Any) -> RGRPORun:
    """The request of R-GRPO's children."""
    folder = stage.store.fetch(data)
    return RGRPORun(
        model_path=str(stage.store.fetch(model)),
        questions_path=str(folder / QUESTIONS / "train.parquet"),
        probe_path=_held_out(folder),
        **settings,
    )


def _held_out(data: Path) -> str:
    """The file of held-out questions; empty where the data have none."""
    path = data / QUESTIONS / "validation.parquet"
    return str(path) if path.is_file() and count_questions(path) else ""
