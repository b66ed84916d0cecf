"""Who is champion: decisions are appended to the history, and MLflow's aliases and tags repeat it.

MLflow cannot set an alias on a condition, so aliases cannot decide between two promotions at once. The
journal can (:mod:`tasks.journal`): a decision that was made on record N is written as record N + 1, which
exists once. Who finds it taken judges again, on what is there now. Aliases follow; whoever wrote one reads
the history again afterwards, so the last writer leaves what the last record says, and what a crash left
undone is done by the next start. docs/operations.md has the argument in full.
"""

import getpass
import os
from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect.runtime import flow_run

from models.errors import TrackingError
from models.history import Author, Record
from tasks.journal import new_place
from tasks.model_source import MODEL_NAME
from tasks.settings import Settings
from tasks.versions import CHAMPION, HISTORY, PREVIOUS, Registry, explained, read_registry, record_of

# Every failed try means that another decision was made meanwhile.
_MAX_TRIES = 20
_MIRROR = "history."
# What PostgreSQL takes as the value of a tag.
_TAG_LENGTH = 5000

# What SQLite and PostgreSQL say of a row that is there by now.
_TAKEN = ("UNIQUE constraint failed", "duplicate key value")


def ensure_registry(client: MlflowClient) -> None:
    """Make the registered model with a place for its history, unless it is there.

    The place is chosen by whoever makes the model, so that all who share the registry share its history, even
    when their own artifacts go elsewhere.
    """
    place = new_place(Settings.read().artifacts)
    with explained():
        try:
            client.create_registered_model(
                MODEL_NAME,
                tags={HISTORY: place},
                description="Models that look again, with their evidence.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if HISTORY not in client.get_registered_model(MODEL_NAME).tags:  # a person made it
            client.set_registered_model_tag(MODEL_NAME, HISTORY, place)


def settle(client: MlflowClient) -> Registry:
    """The registered model once its aliases and tags say what the history says."""
    with explained():
        for _ in range(_MAX_TRIES):
            try:
                return _settle(client)
            except MlflowException as error:
                # Another process copies the same record at this moment, and a database takes a new tag once.
                if not any(word in str(error) for word in _TAKEN):
                    raise
        return _settle(client)


def _settle(client: MlflowClient) -> Registry:
    while (registry := read_registry(client)).journal is not None:
        drift = registry.drift()
        for record in _unmirrored(registry):
            _mirror(client, record)
        for alias in (PREVIOUS, CHAMPION):
            _set_alias(client, alias, drift.get(alias))
        if not drift:
            break
    return registry


def append(client: MlflowClient, decide: Callable[[Registry], Record]) -> Record:
    """Add the record that ``decide`` makes of the registry as it is, and have the aliases follow.

    ``decide`` is called again when another record was added meanwhile.
    """
    ensure_registry(client)
    for _ in range(_MAX_TRIES):
        registry = settle(client)
        record = decide(registry)
        if registry.journal and registry.journal.create(record.number, record.model_dump_json(indent=1)):
            settle(client)
            return record
    raise TrackingError(
        f"The history of {MODEL_NAME} grew {_MAX_TRIES} times while this decision was made. Start again when "
        "fewer promotions run at once."
    )


def records(registry: Registry) -> list[Record]:
    """The whole history, oldest first."""
    if registry.journal is None or registry.last is None:
        return []
    earlier = [record_of(registry.journal, number) for number in range(1, registry.last.number)]
    return [*earlier, registry.last]


def author() -> Author:
    """Who runs this process, and in which flow run."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return Author(user=user, flow_run=str(flow_run.id or ""))


def _unmirrored(registry: Registry) -> list[Record]:
    """The newest records that the registry has no tag of, oldest first."""
    found: list[Record] = []
    if registry.journal is None or registry.last is None:
        return found
    for number in range(registry.last.number, 0, -1):
        if _mirror_name(number) in registry.tags:
            break
        found.insert(0, record_of(registry.journal, number))
    return found


def _mirror(client: MlflowClient, record: Record) -> None:
    """Repeat a record among MLflow's tags: on the model, and on the version that it is about."""
    checks = "\n".join(map(str, record.checks)) or "none"
    client.set_model_version_tag(MODEL_NAME, record.version, "promotion", record.action)
    client.set_model_version_tag(MODEL_NAME, record.version, "promotion_checks", checks[:_TAG_LENGTH])
    text = record.model_dump_json()
    if len(text) > _TAG_LENGTH:
        text = record.model_dump_json(exclude={"checks"})
    client.set_registered_model_tag(MODEL_NAME, _mirror_name(record.number), text[:_TAG_LENGTH])


def _mirror_name(number: int) -> str:
    return f"{_MIRROR}{number:06d}"


def _set_alias(client: MlflowClient, alias: str, drift: tuple[str, str] | None) -> None:
    if drift is None:
        return
    _, wanted = drift
    if wanted:
        client.set_registered_model_alias(MODEL_NAME, alias, wanted)
    else:
        client.delete_registered_model_alias(MODEL_NAME, alias)
