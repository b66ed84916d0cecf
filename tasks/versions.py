"""Registered versions of the model, read from MLflow's registry; :mod:`tasks.registry` makes them and
:mod:`tasks.promotions` promotes them.

One registered model, ``vlm-r3``. A version points at weights in the artifact store, where they exist once,
and at its evidence. Who is champion, and who was before, is what the last record of the history says
(:mod:`models.history`); MLflow's aliases repeat it for those who look there, so an alias that somebody sets
by hand makes no champion.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from models.errors import TrackingError
from models.history import Record
from tasks import tracking
from tasks.artifacts import ArtifactRef
from tasks.journal import Journal, open_journal
from tasks.model_source import MODEL_NAME
from tasks.settings import Settings

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
# A tag of the registered model: where its history is.
HISTORY = "history_uri"
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

logger = logging.getLogger(__name__)


class Version(BaseModel):
    """A registered version: its number, its weights, and its tags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: str
    model: ArtifactRef
    tags: dict[str, str]


@dataclass(frozen=True, slots=True)
class Registry:
    """The registered model as it is now: MLflow's aliases and tags, the journal and last record of its
    history.
    """

    aliases: Mapping[str, str]
    tags: Mapping[str, str]
    journal: Journal | None
    last: Record | None

    def expected(self) -> dict[str, str]:
        """The aliases that the history demands."""
        if self.last is None:
            return {}
        wanted = {CHAMPION: self.last.champion, PREVIOUS: self.last.previous}
        return {alias: number for alias, number in wanted.items() if number}

    def drift(self) -> dict[str, tuple[str, str]]:
        """The aliases that are not what the history says: (as it is, as it should be), empty for none."""
        wanted = self.expected()
        return {
            alias: (self.aliases.get(alias, ""), wanted.get(alias, ""))
            for alias in (CHAMPION, PREVIOUS)
            if self.aliases.get(alias, "") != wanted.get(alias, "")
        }


def read_registry(client: MlflowClient) -> Registry:
    """The registered model; without a history where there is none yet."""
    with explained():
        try:
            found = client.get_registered_model(MODEL_NAME)
        except MlflowException as error:
            if error.error_code in _NOT_FOUND:
                return Registry({}, {}, None, None)
            raise
    aliases = {alias: str(number) for alias, number in found.aliases.items()}
    place = found.tags.get(HISTORY, "")
    journal = open_journal(place) if place else None
    return Registry(aliases, found.tags, journal, newest(journal) if journal else None)


def newest(journal: Journal) -> Record | None:
    """The last record of a history, None when it has none."""
    number = journal.last()
    return record_of(journal, number) if number else None


def record_of(journal: Journal, number: int) -> Record:
    """One record of a history."""
    return Record.model_validate_json(journal.read(number))


def find_version(alias_or_number: str) -> Version | None:
    """The version with that alias or number, None when there is none.

    Champion and previous are those of the history; a warning says where MLflow's aliases differ.
    """
    client, number = registry_client(), alias_or_number
    if alias_or_number in (CHAMPION, PREVIOUS):
        registry = read_registry(client)
        for alias, (found, wanted) in registry.drift().items():
            logger.warning("%s", drift_line(alias, found, wanted))
        number = registry.expected().get(alias_or_number, "")
        if not number:
            return None
    with explained():
        try:
            if number.isdigit():
                return version_of(client.get_model_version(MODEL_NAME, number))
            return version_of(client.get_model_version_by_alias(MODEL_NAME, number))
        except MlflowException as error:
            if error.error_code in _NOT_FOUND:
                return None
            raise


def drift_line(alias: str, found: str, wanted: str) -> str:
    """What is wrong with an alias, for people."""
    return (
        f"Alias {alias!r} stands at {_named(found)}, the history says {_named(wanted)}: a promotion was cut "
        "short, or it was set by hand. The history counts; the next promotion, rollback or run sets it right."
    )


def number_of_weights(digest: str) -> str:
    """The newest version with these weights, empty when there is none."""
    wanted = f"name = '{MODEL_NAME}' AND tags.model_digest = '{digest}'"
    with explained():
        found = registry_client().search_model_versions(
            wanted, max_results=1, order_by=["version_number DESC"]
        )
    return str(found[0].version) if found else ""


def all_versions() -> list[Version]:
    """Every version of the model there is."""
    client, found, token = registry_client(), [], None
    with explained():
        while token != "":
            page = client.search_model_versions(f"name = '{MODEL_NAME}'", page_token=token or None)
            found += [version_of(each) for each in page]
            token = page.token or ""
    return found


def version_of(found: ModelVersion) -> Version:
    """A version as MLflow gives it."""
    tags = dict(found.tags)
    model = ArtifactRef(
        uri=tags.get("model_uri", found.source), sha256=tags.get("model_digest", ""), kind="model"
    )
    return Version(number=str(found.version), model=model, tags=tags)


def registry_client() -> MlflowClient:
    """The registry of this process's settings."""
    return tracking.client(Settings.read())


@contextmanager
def explained() -> Iterator[None]:
    """Turn what MLflow raises in a block into TrackingError."""
    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"The model registry cannot be used: {tracking.reason(error)}") from error


def _named(number: str) -> str:
    return f"version {number}" if number else "none"
