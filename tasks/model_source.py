"""Where a model comes from: one way to name it, whoever asks.

``embedded``, a folder, ``models:/vlm-r3@champion``, ``models:/vlm-r3/3`` (also ``champion`` and ``3``
alone), or an ``s3://`` prefix of a model folder or of an artifact.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.config import resolve_model_path
from models.errors import ConfigError
from tasks.artifacts import MANIFEST, ArtifactRef, store_of
from tasks.progress import FETCH, board, show_megabytes
from tasks.settings import Settings
from tasks.uris import S3_SCHEME

if TYPE_CHECKING:
    from tasks.s3_mirror import RemoteFolder
    from tasks.versions import Version

MODEL_NAME = "vlm-r3"
_REGISTERED = re.compile(rf"models:/{MODEL_NAME}(?:@|/)(?P<version>[\w.-]+)")
_ALIAS_OR_NUMBER = re.compile(r"[\w-]+")
# What a model is read from. Weights in other formats can run code when they are loaded, so they stay away.
_MODEL_FILES = (".json", ".jinja", ".txt", ".model", ".safetensors")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine: its folder, or ``embedded``; ``source`` says what the folder is a copy of,
    with the number of a registered version, and is empty where it is none.
    """

    path: str
    source: str = ""


def check_model(wanted: str, settings: Settings) -> None:
    """Whether there is such a model, without fetching its weights. Raises ConfigError where there is none."""
    if wanted.startswith(S3_SCHEME):
        _remote(wanted)
    elif version := _version_asked(wanted):
        _registered(wanted, version, settings)
    else:
        resolve_model_path(wanted)


def find_model(wanted: str, settings: Settings) -> FoundModel:
    """The model, fetched and checked if it lies elsewhere.

    Raises ConfigError where there is no such model, ArtifactError where it is not what was registered.
    """
    if wanted.startswith(S3_SCHEME):
        remote, names = _remote(wanted)
        if MANIFEST in names:  # an artifact of ours: every file is checked
            store = store_of(wanted, settings)
            return FoundModel(str(store.fetch(store.ref_of(wanted, kind="model"))), source=str(remote))
        with board().stage(FETCH):
            folder = remote.mirror(names, settings, show_megabytes)
        return FoundModel(str(folder), source=str(remote))
    if version := _version_asked(wanted):
        found = _registered(wanted, version, settings)
        folder = resolve_model_path(str(store_of(found.model.uri, settings).fetch(found.model)))
        return FoundModel(str(folder), source=f"models:/{MODEL_NAME}/{found.number}")
    resolve_model_path(wanted)
    return FoundModel(wanted if wanted == "embedded" else str(Path(wanted).absolute()))


def find_artifact(wanted: str, settings: Settings) -> ArtifactRef:
    """The artifact of a registered version or of an address: ``URI``, or ``URI#DIGEST`` as runs write it.

    Raises ConfigError for any other name or an unknown version, ArtifactError where there is no artifact.
    """
    uri, _, digest = wanted.partition("#")
    if uri.startswith(("s3://", "file://")):
        if digest:
            return ArtifactRef(uri=uri, sha256=digest, kind="artifact")
        return store_of(uri, settings).ref_of(uri, kind="artifact")
    version = _version_asked(wanted)
    if not version:
        raise ConfigError(
            f"{wanted!r} is no artifact. Give models:/{MODEL_NAME}@ALIAS, models:/{MODEL_NAME}/NUMBER, or "
            "the address of an artifact (s3://, file://)."
        )
    return _registered(wanted, version, settings).model


def champion_or(default: str, settings: Settings) -> str:
    """The name of the champion where there is one, else the default."""
    if not has_registry(settings):
        return default
    from tasks.versions import CHAMPION, find_version

    return f"models:/{MODEL_NAME}@{CHAMPION}" if find_version(CHAMPION) else default


def _version_asked(wanted: str) -> str:
    """The alias or number that is meant; empty where a folder is."""
    if wanted.startswith("models:"):
        registered = _REGISTERED.fullmatch(wanted)
        if registered is None:
            raise ConfigError(
                f"{wanted!r} is no registered model. Write models:/{MODEL_NAME}@ALIAS or "
                f"models:/{MODEL_NAME}/NUMBER."
            )
        return registered["version"]
    is_path = wanted == "embedded" or Path(wanted).exists()
    return "" if is_path or not _ALIAS_OR_NUMBER.fullmatch(wanted) else wanted


def _registered(wanted: str, alias_or_number: str, settings: Settings) -> "Version":
    found = None
    if has_registry(settings):
        from tasks.versions import find_version

        found = find_version(alias_or_number)
    if found is None:
        raise ConfigError(
            f"Model {wanted!r}: there is no such folder, and no version of {MODEL_NAME} has the alias or "
            "number "
            f"{alias_or_number!r}. `vlm-r3 run` registers versions; MLFLOW_TRACKING_URI or --work-dir says "
            "where."
        )
    if not found.model.sha256:
        raise ConfigError(
            f"Version {found.number} of {MODEL_NAME} names no digest of its weights, so they cannot be "
            "checked. Register it by a run."
        )
    return found


def has_registry(settings: Settings) -> bool:
    """False where MLflow would make an empty database only to find nothing in it."""
    prefix = "sqlite:///"
    uri = settings.tracking_uri
    return not uri.startswith(prefix) or Path(uri.removeprefix(prefix)).exists()


def _remote(wanted: str) -> "tuple[RemoteFolder, list[str]]":
    """A model folder in S3 and the names of the files that make a model."""
    from tasks.s3_mirror import RemoteFolder

    remote = RemoteFolder(wanted)
    names = [name for name in remote.objects if "/" not in name and name.endswith(_MODEL_FILES)]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(
            f"{wanted} holds no model: config.json and *.safetensors are wanted right under the prefix. "
            f"There are: {', '.join(sorted(remote.objects)[:8])}."
        )
    return remote, names
