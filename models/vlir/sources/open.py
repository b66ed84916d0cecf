"""From a source's configuration to what reads it."""

from pathlib import Path

from models.errors import ConfigError, RecordError
from models.vlir.sources import gqa, published, vsr
from models.vlir.sources.base import Source
from models.vlir.sources.files import PictureFolder
from models.vlir.sources.manifest import Manifest, find_manifest, open_rows
from models.vlir.sources.visual_cot import BoxJoin, VisualCoT, find_metadata
from models.vlir_config import SourceConfig

_PLACES = ("data", "images", "scene_graphs", "boxes", "buckets")
_VISUAL_COT_LICENCE = "Apache-2.0 (annotations); pictures: the terms of their own sets"


def open_source(config: SourceConfig, *, max_picture_bytes: int) -> Source:
    """What reads a source from local files; a picture's file of more than ``max_picture_bytes`` is a fault.

    Raises ConfigError for a place in S3, which must be fetched first, and for the drawn world, which has no
    files; RecordError when files are missing, are not those of the set, or are of another split than the
    training one.
    """
    for name in _PLACES:
        if str(getattr(config, name)).startswith("s3://"):
            raise ConfigError(
                f"source {config.label!r}: {name} {getattr(config, name)!r} lies in S3. Fetch it first."
            )
    join = BoxJoin(find_metadata(_path(config.boxes))) if config.boxes else None
    match config.kind:
        case "manifest":
            return _manifest(config, join, max_picture_bytes)
        case "textvqa":
            return _published(config, published.TEXTVQA, join)
        case "docvqa":
            return _published(config, published.DOCVQA, join)
        case "infographicvqa":
            return _published(config, published.INFOGRAPHICVQA, join)
        case "m3cot":
            return _published(config, published.M3COT, join)
        case "gqa":
            return _gqa(config, join)
        case "vsr":
            pictures = _pictures(config, max_picture_bytes)
            lines = vsr.find_lines(_existing(config.data))
            return vsr.VSR(config.label, config.licence or vsr.LICENCE, lines, pictures, join)
        case "visual_cot":
            pictures = _pictures(config, max_picture_bytes)
            metadata = find_metadata(_existing(config.data))
            return VisualCoT(config.label, config.licence or _VISUAL_COT_LICENCE, metadata, pictures)
    raise ConfigError(f"source {config.label!r}: kind {config.kind!r} has no files to read.")


def _manifest(config: SourceConfig, join: BoxJoin | None, max_picture_bytes: int) -> Manifest:
    file = find_manifest(_path(config.data))
    return Manifest(
        label=config.label,
        licence=config.licence,
        table=open_rows(file, max_picture_bytes=max_picture_bytes),
        folder=_existing(config.images) if config.images else file.parent,
        buckets=_path(config.buckets) if config.buckets else None,
        join=join,
        max_picture_bytes=max_picture_bytes,
    )


def _published(
    config: SourceConfig, training_set: published.TrainingSet, join: BoxJoin | None
) -> published.PublishedSource:
    table = published.training_table(training_set, _existing(config.data))
    licence = config.licence or training_set.licence
    return published.PublishedSource(config.label, licence, training_set, table, join)


def _gqa(config: SourceConfig, join: BoxJoin | None) -> gqa.GQA:
    folder = _existing(config.data)
    return gqa.GQA(
        label=config.label,
        licence=config.licence or gqa.LICENCE,
        instructions=published.training_files(
            folder, gqa.INSTRUCTIONS, gqa.INSTRUCTION_COLUMNS, optional=("annotations",), what="GQA"
        ),
        images=published.training_files(
            _existing(config.images) if config.images else folder, gqa.IMAGES, gqa.IMAGE_COLUMNS, what="GQA"
        ),
        graphs=gqa.read_scene_graphs(_existing(config.scene_graphs)) if config.scene_graphs else None,
        join=join,
    )


def _pictures(config: SourceConfig, max_picture_bytes: int) -> PictureFolder:
    """Its rows only name their pictures."""
    if not config.images:
        raise ConfigError(f"source {config.label!r}: {config.kind} needs images: the folder of its pictures")
    return PictureFolder(_existing(config.images), max_bytes=max_picture_bytes)


def _existing(text: str) -> Path:
    path = _path(text)
    if not path.exists():
        raise RecordError(f"{path}: there is no such file or folder.")
    return path


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()
