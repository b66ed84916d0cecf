"""MLflow: the only module that tracks with it. One parent run per pipeline, one nested run per stage.

``metrics.jsonl`` is the source; its lines are forwarded while the stage runs, in batches. A tracker that is
down at the start is an error; one that fails in mid-run is a warning: training goes on, what was not
delivered is kept and sent later, if need be by the next run (:mod:`tasks.backlog`).
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from models.endpoints import without_user
from models.errors import TrackingError
from tasks import backlog
from tasks.endpoint_models import without_password
from tasks.settings import Settings, limit_tracker_retries

EXPERIMENT = "vlm-r3"
FLUSH_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0
# What the tracker accepts in one call, and the longest parameter value.
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
# The tracker keeps this much of a digest of data.
_DATA_DIGEST_LENGTH = 36
_NOT_IN_A_MODEL = re.compile(r"[/:.%\"']")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
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
    limit_tracker_retries()
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
            f"The tracker {place(settings)} cannot be used: {reason(error)}. Start it, or set "
            "MLFLOW_TRACKING_URI to another one."
        ) from error


@dataclass(frozen=True, slots=True)
class Measured:
    """On what numbers were measured: the model, by name and digest (:func:`logged_model`), and the data."""

    model: str
    model_digest: str
    model_tags: Mapping[str, str]
    data: str
    data_digest: str
    data_source: str

    def dataset(self) -> Dataset:
        """The data as MLflow keeps them."""
        source = json.dumps({"uri": self.data_source})
        return Dataset(self.data, self.data_digest[:_DATA_DIGEST_LENGTH], "local", source)


def logged_model(
    settings: Settings, *, name: str, digest: str, tags: Mapping[str, str], run_id: str = ""
) -> str:
    """The id of MLflow's record of a model, made at first use, of the run that made the model if it is known.

    ``digest``, hexadecimal, is what makes it this model: all numbers of the same weights are linked to one
    record. Raises TrackingError when the tracker does not answer.
    """
    mlflow, experiment = client(settings), experiment_id(settings)
    try:
        found = mlflow.search_logged_models(
            [experiment],
            f"tags.model_digest = '{digest}'",
            max_results=1,
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        )
        if found:
            return str(found[0].model_id)
        made = mlflow.create_logged_model(
            experiment,
            _NOT_IN_A_MODEL.sub("-", name),
            source_run_id=run_id or None,
            tags={**tags, "model_digest": digest},
            model_type="look-again",
        )
        return str(mlflow.finalize_logged_model(made.model_id, LoggedModelStatus.READY).model_id)
    except _UNAVAILABLE as error:
        raise TrackingError(f"The tracker took no record of the model {name!r}: {reason(error)}") from error


def find_artifact(settings: Settings, run: str, name: str) -> tuple[str, str] | None:
    """URI and digest of an artifact of a tracked run, given by its id or its name; of several runs with that
    name, of the newest that has one. None when there is none.
    """
    if '"' in run:
        return None
    mlflow, tag = client(settings), f"artifact.{name}"
    try:
        if _RUN_ID.fullmatch(run):
            candidates = [mlflow.get_run(run)]
        else:
            candidates = mlflow.search_runs(
                [experiment_id(settings)],
                filter_string=f'attributes.run_name = "{run}"',
                order_by=["attributes.start_time DESC"],
            )
    except _UNAVAILABLE as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise TrackingError(f"The tracker {place(settings)} cannot be read: {reason(error)}") from error
    for found in candidates:
        uri, _, digest = found.data.tags.get(tag, "").partition("#")
        if digest:
            return uri, digest
    return None


def find_artifacts(settings: Settings, *, stage: str, name: str, param: str, value: str) -> list[str]:
    """``URI#digest`` of an artifact of every finished run of a stage with that parameter, oldest first."""
    found = client(settings).search_runs(
        [experiment_id(settings)],
        filter_string=f"tags.stage = '{stage}' AND params.`{param}` = '{value}' AND status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
    )
    return [run.data.tags[f"artifact.{name}"] for run in found if f"artifact.{name}" in run.data.tags]


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """A tracker that fails in the middle of a run is a warning: the work goes on and its results are kept."""
    try:
        yield
    except (*_UNAVAILABLE, TrackingError) as error:
        logger.warning("The tracker did not take %s; the artifact holds it. %s", what, reason(error))


class TrackedRun:
    """One MLflow run while it lasts."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.id = run_id
        self._settings = settings
        self._client = client(settings)
        self._waiting: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._next = time.monotonic() + FLUSH_SECONDS
        self._pause = FLUSH_SECONDS

    def forward(self, line: Mapping[str, Any]) -> None:
        """Take one line of ``metrics.jsonl``; it is sent with others every ``FLUSH_SECONDS``."""
        when, step = int(float(line["time"]) * 1000), int(line["step"])
        self._waiting += [
            Metric(_tracker_name(name), float(value), when, step)
            for name, value in line.items()
            if "/" in name and not name.startswith("progress/")
        ]
        if time.monotonic() >= self._next:
            self.flush()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags; what the tracker does not take now is set when the run ends, or later."""
        self._tags |= tags
        with tolerated(f"tags {', '.join(tags)}"):
            self._set_tags()

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a small file with the run."""
        with tolerated(path.name):
            self._client.log_artifact(self.id, str(path), folder)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters that were not known when the run began."""
        with tolerated("parameters"):
            _log_params(self._client, self.id, flatten(params))

    def log_table(self, columns: Mapping[str, Sequence[Any]], name: str) -> None:
        """Keep a table, given by column, which MLflow shows and compares between runs."""
        with tolerated(name):
            self._client.log_table(self.id, {key: list(column) for key, column in columns.items()}, name)

    def log_measured(self, metrics: Mapping[str, float], on: Measured) -> None:
        """Numbers, linked to the model and the data that they were measured on."""
        when, data = int(time.time() * 1000), on.dataset()
        with tolerated("metrics linked to their model"):
            model = logged_model(self._settings, name=on.model, digest=on.model_digest, tags=on.model_tags)
            self._client.log_inputs(
                self.id,
                datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "evaluation")])],
                models=[LoggedModelInput(model)],
            )
            linked = {"model_id": model, "dataset_name": data.name, "dataset_digest": data.digest}
            points = [
                Metric(_tracker_name(name), float(value), when, 0, run_id=self.id, **linked)
                for name, value in metrics.items()
            ]
            for start in range(0, len(points), _METRICS_PER_BATCH):
                self._client.log_batch(self.id, metrics=points[start : start + _METRICS_PER_BATCH])

    def flush(self) -> bool:
        """Deliver what waits. False when the tracker did not take it; it stays queued then.

        A tracker that is away is asked less and less often: each try holds up the run.
        """
        while self._waiting:
            batch = self._waiting[:_METRICS_PER_BATCH]
            try:
                self._client.log_batch(self.id, metrics=batch)
            except _UNAVAILABLE as error:
                waiting = len(self._waiting)
                logger.warning("The tracker takes no metrics now, %d wait: %s", waiting, reason(error))
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
                self._next = time.monotonic() + self._pause
                return False
            self._waiting = self._waiting[_METRICS_PER_BATCH:]
        self._pause = FLUSH_SECONDS
        self._next = time.monotonic() + self._pause
        return True

    def finish(self, status: str) -> None:
        """Deliver the rest and close the run as FINISHED, FAILED or KILLED; what is left waits on disk."""
        try:
            is_delivered = self.close(status)
        except _UNAVAILABLE as error:
            logger.warning("Run %s could not be closed in the tracker: %s", self.id, reason(error))
            is_delivered = False
        if not is_delivered:
            path = backlog.keep(self._settings, self._undelivered(status))
            logger.warning(
                "Run %s: %d metrics were not delivered. The next run delivers them from %s.",
                self.id,
                len(self._waiting),
                path,
            )

    def take(self, undelivered: backlog.Undelivered) -> None:
        """Queue what an earlier process could not deliver of this run."""
        self._tags |= undelivered.tags
        self._waiting += [
            Metric(point.name, point.value, point.when, point.step) for point in undelivered.points
        ]

    def close(self, status: str) -> bool:
        """Deliver everything and close the run. False when the tracker did not take all metrics.

        Raises what MLflow raises for tags and status.
        """
        if not self.flush():
            return False
        self._set_tags()
        self._client.set_terminated(self.id, status)
        return True

    def _set_tags(self) -> None:
        """Set the tags that wait, in one call: each costs the tracker a transaction."""
        if self._tags:
            self._client.log_batch(self.id, tags=[RunTag(*tag) for tag in self._tags.items()])
            self._tags = {}

    def _undelivered(self, status: str) -> backlog.Undelivered:
        return backlog.Undelivered(
            tracker=place(self._settings),
            run_id=self.id,
            status=status,
            points=tuple(
                backlog.Point(name=found.key, value=found.value, when=found.timestamp, step=found.step)
                for found in self._waiting
            ),
            tags=self._tags,
        )


@contextmanager
def tracked_run(
    settings: Settings,
    name: str,
    *,
    parent: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    experiment: str = "",
) -> Iterator[TrackedRun]:
    """An MLflow run around a block; nested under ``parent`` (a run id) when there is one.

    ``experiment`` is its id where that has just been asked. The run ends as FINISHED, as FAILED when the
    block raises, as KILLED when it is cancelled.
    """
    experiment = experiment or experiment_id(settings)
    backlog.deliver(settings, tracker=place(settings), send=partial(_send_late, settings))
    links = {"mlflow.parentRunId": parent} if parent else {}
    mlflow = client(settings)
    try:
        created = mlflow.create_run(experiment, tags={**links, **(tags or {})}, run_name=name)
        _log_params(mlflow, created.info.run_id, flatten(params or {}))
    except _UNAVAILABLE as error:
        raise TrackingError(f"The tracker {place(settings)} took no new run: {reason(error)}") from error
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


def place(settings: Settings) -> str:
    """The tracker's address for people, without user and password."""
    return without_password(settings.tracking_uri)


def reason(error: Exception) -> str:
    """What went wrong; MLflow may repeat the tracker's address with its password."""
    return without_user(str(error))


def _send_late(settings: Settings, undelivered: backlog.Undelivered) -> bool:
    """Deliver what an earlier run could not; the same numbers sent twice count once. False when it fails."""
    run = TrackedRun(settings, undelivered.run_id)
    run.take(undelivered)
    try:
        return run.close(undelivered.status)
    except _UNAVAILABLE as error:
        logger.warning("Run %s still waits: %s", undelivered.run_id, reason(error))
        return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"  # somebody removed the run


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
