"""Registered versions of the model, read from MLflow's registry; :mod:`tasks.registry` makes and promotes
them.

One registered model, ``vlm-r3``. A version points at weights in the artifact store, where they exist once,
and carries its evidence as tags; an alias says what it is.
"""

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from models.errors import TrackingError
from tasks import tracking
from tasks.artifacts import ArtifactRef
from tasks.model_source import MODEL_NAME
from tasks.settings import Settings

CHALLENGER, CHAMPION = "challenger", "champion"


class Version(BaseModel):
    """A registered version: its number, its weights, and its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: str
    model: ArtifactRef
    evidence: dict[str, str]


def find_version(alias_or_number: str) -> Version | None:
    """The version with that alias or number, None when there is none."""
    client = registry_client()
    try:
        if alias_or_number.isdigit():
            return version_of(client.get_model_version(MODEL_NAME, alias_or_number))
        return version_of(client.get_model_version_by_alias(MODEL_NAME, alias_or_number))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(f"The model registry could not be read: {error}") from error


def all_versions() -> list[Version]:
    """Every version of the model there is."""
    client, found, token = registry_client(), [], None
    try:
        while token != "":
            page = client.search_model_versions(f"name = '{MODEL_NAME}'", page_token=token or None)
            found += [version_of(each) for each in page]
            token = page.token or ""
    except MlflowException as error:
        raise TrackingError(f"The model registry could not be read: {error}") from error
    return found


def version_of(found: ModelVersion) -> Version:
    """A version as MLflow gives it."""
    tags = dict(found.tags)
    model = ArtifactRef(
        uri=tags.get("model_uri", found.source), sha256=tags.get("model_digest", ""), kind="model"
    )
    return Version(number=str(found.version), model=model, evidence=tags)


def registry_client() -> MlflowClient:
    """The registry of this process's settings."""
    return tracking.client(Settings.read())
