"""MLflow: the only module that tracks with it. One parent run per pipeline, one nested run per stage.

``metrics.jsonl`` is the source; its lines are forwarded while the stage runs, in batches. A tracker that is
down at the start is an error; one that fails in mid-run is a warning: training goes on, what was not
delivered is kept and sent later.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from models.errors import TrackingError
from tasks.settings import Settings

EXPERIMENT = "vlm-r3"
FLUSH_SECONDS = 2.0
# What the tracker accepts in one call, and the longest parameter value.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_UNAVAILABLE = (MlflowException, SQLAlchemyError, OSError)

logger = logging.getLogger(__name__)


@lru_cache(maxsize=4)
def client_of(tracking_uri: str) -> MlflowClient:
    """The client of a tracker; its tables are created at first use."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri)


def client(settings: Settings) -> MlflowClient:
    """The client of the configured tracker."""
    if settings.tracking_uri.startswith("sqlite:"):
        settings.work_dir.mkdir(parents=True, exist_ok=True)
    return client_of(settings.tracking_uri)


def experiment_id(settings: Settings) -> str:
    """The experiment that holds all runs, created when missing.

    Raises TrackingError when the tracker cannot be used: nothing should start that could not be recorded.
    """
    try:
        found = client(settings).get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        is_local = settings.tracking_uri.startswith("sqlite:")
        location = settings.tracking_files.as_uri() if is_local else None
        return str(client(settings).create_experiment(EXPERIMENT, artifact_location=location))
    except _UNAVAILABLE as error:
        raise TrackingError(
            f"The tracker {settings.tracking_uri!r} cannot be used: {error}. Start it, or set "
            "MLFLOW_TRACKING_URI to another one."
        ) from error


class TrackedRun:
    """One MLflow run while it lasts."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.id = run_id
        self._client = client(settings)
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def forward(self, line: Mapping[str, Any]) -> None:
        """Take one line of ``metrics.jsonl``; it is sent with others every ``FLUSH_SECONDS``."""
        when, step = int(float(line["time"]) * 1000), int(line["step"])
        self._waiting += [
            Metric(_tracker_name(name), float(value), when, step)
            for name, value in line.items()
            if "/" in name and not name.startswith("progress/")
        ]
        if time.monotonic() - self._sent >= FLUSH_SECONDS:
            self.flush()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in tags.items():
            self._client.set_tag(self.id, name, value)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a small file with the run."""
        self._client.log_artifact(self.id, str(path), folder)

    def flush(self) -> bool:
        """Deliver what waits. False when the tracker did not take it; it stays queued then."""
        self._sent = time.monotonic()
        while self._waiting:
            batch = self._waiting[:_METRICS_PER_BATCH]
            try:
                self._client.log_batch(self.id, metrics=batch)
            except _UNAVAILABLE as error:
                logger.warning("The tracker takes no metrics now, %d wait: %s", len(self._waiting), error)
                return False
            self._waiting = self._waiting[_METRICS_PER_BATCH:]
        return True

    def finish(self, status: str) -> None:
        """Deliver the rest and close the run as FINISHED, FAILED or KILLED."""
        if not self.flush():
            logger.warning("Run %s: %d metrics were not delivered.", self.id, len(self._waiting))
        try:
            self._client.set_terminated(self.id, status)
        except _UNAVAILABLE as error:
            logger.warning("Run %s could not be closed in the tracker: %s", self.id, error)


@contextmanager
def tracked_run(
    settings: Settings,
    name: str,
    *,
    parent: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """An MLflow run around a block; nested under ``parent`` (a run id) when there is one.

    The run ends as FINISHED, as FAILED when the block raises, as KILLED when it is cancelled.
    """
    experiment = experiment_id(settings)
    links = {"mlflow.parentRunId": parent} if parent else {}
    mlflow = client(settings)
    try:
        created = mlflow.create_run(experiment, tags={**links, **(tags or {})}, run_name=name)
        _log_params(mlflow, created.info.run_id, flatten(params or {}))
    except _UNAVAILABLE as error:
        raise TrackingError(f"The tracker {settings.tracking_uri!r} took no new run: {error}") from error
    run = TrackedRun(settings, created.info.run_id)
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        run.finish(status)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as ``stage.key`` -> text, the way overrides are written."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:_PARAM_LENGTH]
    return flat


def _log_params(mlflow: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    items: Sequence[Param] = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(items), _PARAMS_PER_BATCH):
        mlflow.log_batch(run_id, params=items[start : start + _PARAMS_PER_BATCH])


def _tracker_name(name: str) -> str:
    """MLflow refuses the at sign of names such as ``eval/mean@8``."""
    return name.replace("@", "_at_")
