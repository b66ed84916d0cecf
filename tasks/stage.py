"""What every stage does around its work: a run directory, a tracked run, the display, the store.

A task that does heavy work opens a :class:`StageRun`, has a child do the work, publishes what came out and
returns a :class:`StageOutput`, the one thing that is cached.
"""

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from prefect import Task
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from models import locks
from models.check import PREFLIGHT
from models.config import Preset
from models.errors import RunDirError, TrackingError
from models.rundir import Result, RunDir
from tasks import tracking
from tasks.artifacts import ArtifactRef, Store, open_store
from tasks.caching import code_version
from tasks.launch import run_child
from tasks.progress import board
from tasks.settings import Settings
from tasks.uris import S3_SCHEME

if TYPE_CHECKING:
    from tasks.checkpoint_copies import CheckpointCopies

# What is kept of a run directory beside its product: enough to read how it went.
RECORD_FILES = ("config.json", "metrics.jsonl", "result.json", "log.txt", PREFLIGHT)
# How long a run waits between stages for a tracker that has gone, and between two looks at it.
_PATIENCE_SECONDS, _PATIENCE_STEP_SECONDS = 600.0, 10.0
_HELD_STEP_SECONDS = 1.0

logger = logging.getLogger(__name__)


class StageOutput(BaseModel):
    """What a stage made: artifacts by name, closing numbers, seconds of work, and its tracked run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifacts: dict[str, ArtifactRef]
    metrics: dict[str, float] = {}
    seconds: float
    tracking_run: str = ""


class StageRun:
    """One execution of a stage, inside its Prefect task."""

    def __init__(self, settings: Settings, tracked: tracking.TrackedRun, *, stage: str, label: str) -> None:
        self.settings = settings
        self.store: Store = open_store(settings.artifacts, cache=settings.fetched)
        self.tracked = tracked
        self._stage = stage
        self._label = label
        self._refreshed: set[Path] = set()
        self._held: dict[Path, TextIO] = {}
        self._copies: list[CheckpointCopies] = []

    async def child(
        self,
        module: str,
        config: BaseModel,
        *,
        inputs: Iterable[ArtifactRef],
        num_ranks: int = 1,
        num_threads: int = 0,
        is_repeated: bool = False,
        named_by: BaseModel | None = None,
        keep_checkpoints: int = 0,
    ) -> tuple[RunDir, Result]:
        """The run directory and result of ``python -m module``; an unfinished earlier run goes on.

        A finished one is not run again, unless ``is_repeated``: its child then decides what is left to do.
        ``named_by`` names the directory in place of ``config``, a part of which may change between starts.
        So many of its checkpoints are kept in the store as well, where that is not on this machine: an
        unfinished run goes on from there when the directory has gone.
        """
        run = await self.directory(module, config, inputs, named_by=named_by)
        if is_done(run) and not is_repeated:
            for line in run.metrics():  # nothing of it has reached this tracked run
                self.tracked.forward(line)
            return run, run.result()
        log = _logger()
        async with self._copied_checkpoints(run, keep_checkpoints):
            result = await run_child(
                module,
                run,
                num_ranks=num_ranks,
                num_threads=num_threads,
                held=[self._held[run.path]],
                on_start=lambda: board().start(self._label),
                on_line=log.info,
                on_metrics=self.measured,
            )
        return run, result

    @asynccontextmanager
    async def _copied_checkpoints(self, run: RunDir, keep: int) -> AsyncIterator[None]:
        """Fetch a run's newest checkpoint before a block, and keep copies of those that the block makes."""
        if not keep or not self.settings.artifacts.startswith(S3_SCHEME):
            yield
            return
        from tasks.checkpoint_copies import CheckpointCopies  # boto3 takes long to import

        copies = CheckpointCopies(self.settings.artifacts, run, keep=keep)
        await asyncio.to_thread(copies.restore)
        copies.start()
        is_waited_for = False
        try:
            yield
            is_waited_for = True
        except Exception:
            is_waited_for = True  # it will be started again, maybe elsewhere; a cancelled one has no time
            raise
        finally:
            await asyncio.to_thread(copies.stop, is_waited_for=is_waited_for)
            self.tracked.tag(
                {
                    "checkpoints.copied": str(copies.num_made),
                    "checkpoints.copies_failed": str(copies.num_failed),
                }
            )
        self._copies.append(copies)

    async def directory(
        self,
        module: str,
        config: BaseModel,
        inputs: Iterable[ArtifactRef],
        *,
        named_by: BaseModel | None = None,
    ) -> RunDir:
        """The run directory of this work: the same inputs, configuration and code give the same one.

        Until this stage ends nobody else gets it; it is waited for while another run works in it.
        """
        name = (named_by or config).model_dump_json()
        parts = [name, code_version(module), *(ref.sha256 for ref in inputs)]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        path = self.settings.runs / f"{self._label}-{digest[:12]}"
        await self._hold(path)
        if self.settings.refresh and path not in self._refreshed:
            shutil.rmtree(path, ignore_errors=True)
            self._refreshed.add(path)
        return RunDir.create(path, config, may_change=named_by is not None)

    async def _hold(self, path: Path) -> None:
        """Two runs never write the same directory, also when one has outlived the worker that started it."""
        lock = path.parent / ".locks" / path.name
        is_told = False
        while path not in self._held:
            if file := locks.take(lock):
                self._held[path] = file
            else:
                if not is_told:
                    _logger().warning("%s: %s works there. Waiting for it.", path.name, locks.holder(lock))
                    is_told = True
                await asyncio.sleep(_HELD_STEP_SECONDS)

    def close(self) -> None:
        """Others may have the run directories."""
        for file in self._held.values():
            file.close()

    def measured(self, line: Mapping[str, Any]) -> None:
        """Show and track one line of metrics."""
        board().update(self._label, line)
        self.tracked.forward(line)

    def publish(self, run: RunDir, paths: Iterable[str], *, kind: str) -> ArtifactRef:
        """Keep files and folders of the run directory as one artifact; a single folder is kept as it is."""
        chosen = list(paths)
        folder = run.path / chosen[0]
        if len(chosen) > 1 or not folder.is_dir():
            folder = _gathered(run.path, chosen, name=f"{kind}.kept")
        return self.store.publish(folder, stage=self._stage, kind=kind)

    def output(self, run: RunDir, result: Result, artifacts: Mapping[str, ArtifactRef]) -> StageOutput:
        """What the task returns; the run's own record becomes an artifact too, and goes to the tracker."""
        record = self.publish(
            run, [name for name in RECORD_FILES if (run.path / name).exists()], kind="record"
        )
        for name in RECORD_FILES:
            if (run.path / name).exists():
                self.tracked.log_file(run.path / name)
        for copies in self._copies:
            copies.remove()  # what was trained is kept
        self.tracked.tag({f"artifact.{name}": f"{ref.uri}#{ref.sha256}" for name, ref in artifacts.items()})
        return StageOutput(
            artifacts={**artifacts, "record": record},
            metrics=result.metrics,
            seconds=result.seconds,
            tracking_run=self.tracked.id,
        )


@asynccontextmanager
async def stage_run(
    stage: str, *, label: str = "", name: str = "", parent: str = "", params: Mapping[str, Any]
) -> AsyncIterator[StageRun]:
    """A stage's work around a block, tracked as a run called ``name`` (else ``label``) under ``parent``."""
    settings = Settings.read()
    board().start(label or stage)
    tags = {"stage": stage, **_prefect_tags()}
    title = name or label or stage
    experiment = await _tracker_back(settings) if parent else ""
    with (
        tracking.tracked_run(
            settings, title, parent=parent, params=params, tags=tags, experiment=experiment
        ) as tracked,
        closing(StageRun(settings, tracked, stage=stage, label=label or stage)) as run,
    ):
        yield run


async def _tracker_back(settings: Settings) -> str:
    """The experiment, once a tracker that went away between two stages is back: nothing is lost for it."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return tracking.experiment_id(settings)
        except TrackingError as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("%s Waiting for it.", error)
        await asyncio.sleep(_PATIENCE_STEP_SECONDS)


async def perform(task: Task[..., Any], *, label: str, parent: str, **inputs: Any) -> Any:
    """The task's result, shown on the board and noted in the pipeline's tracked run; cached or made now."""
    with board().stage(label) as row:
        row.is_cached = bool(task.persist_result)  # until its work starts
        output = await task(**inputs, label=label, parent=parent)
    if parent and isinstance(output, StageOutput):
        source = "cache" if row.is_cached else "run"
        tags = {f"stage.{label}": output.tracking_run, f"stage.{label}.from": source}
        tracking.TrackedRun(Settings.read(), parent).tag(tags)
    return output


@contextmanager
def pipeline_run(preset: Preset) -> Iterator[str]:
    """The tracked run that the stages of a block nest under; gives its id."""
    settings = Settings.read()
    tags = {"stage": "pipeline", "preset": preset.name}
    with tracking.tracked_run(
        settings, f"pipeline {preset.name}", params=preset.model_dump(), tags=tags
    ) as run:
        yield run.id


def read_store() -> Store:
    """The configured store."""
    settings = Settings.read()
    return open_store(settings.artifacts, cache=settings.fetched)


def is_done(run: RunDir) -> bool:
    """A result that cannot be read is none: the stage goes on from its last checkpoint."""
    try:
        return (run.path / "result.json").is_file() and run.result().status == "done"
    except RunDirError as error:
        _logger().warning("%s", error)
        return False


def _gathered(root: Path, paths: Iterable[str], *, name: str) -> Path:
    target = root / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in paths:
        source = root / path
        if source.is_dir():
            shutil.copytree(source, target / path)
        else:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / path)
    return target


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """Prefect's run logger inside a run, so that a child's lines appear in its UI."""
    inside = TaskRunContext.get() or FlowRunContext.get()
    return get_run_logger() if inside else logging.getLogger(__name__)


def _prefect_tags() -> dict[str, str]:
    context = TaskRunContext.get()
    run = context.task_run if context else None
    return {"prefect.flow_run_id": str(run.flow_run_id)} if run and run.flow_run_id else {}
