"""From a source's configuration to what reads it."""

from pathlib import Path

from models.errors import ConfigError
from models.vlir.sources.base import Source
from models.vlir.sources.manifest import Manifest, find_manifest
from models.vlir_config import SourceConfig


def open_source(config: SourceConfig, *, max_picture_bytes: int) -> Source:
    """What reads a source, from local files; a picture's file of more than ``max_picture_bytes`` is a fault.

    Raises ConfigError for a place in S3, which must be fetched first, and for the drawn world, which has no
    files; RecordError when the files are missing or are not those of the set.
    """
    for name in ("data", "images", "scene_graphs", "boxes"):
        if str(getattr(config, name)).startswith("s3://"):
            raise ConfigError(
                f"source {config.label!r}: {name} {getattr(config, name)!r} lies in S3. Fetch it first."
            )
    match config.kind:
        case "manifest":
            return _manifest(config, max_picture_bytes)
    raise ConfigError(f"source {config.label!r}: kind {config.kind!r} has no files to read.")


def _manifest(config: SourceConfig, max_picture_bytes: int) -> Manifest:
    file = find_manifest(_path(config.data))
    return Manifest(
        label=config.label,
        licence=config.licence,
        file=file,
        folder=_path(config.images) if config.images else file.parent,
        buckets=_path(config.buckets) if config.buckets else None,
        max_picture_bytes=max_picture_bytes,
    )


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()
