"""The files of training sources on this machine: local ones are looked at, those in S3 are fetched."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from models.errors import ConfigError
from models.vlir.sources import gqa
from models.vlir.sources.named import PARQUET_SETS, index_files, named_pictures
from models.vlir.sources.named import source_files as files_of
from models.vlir.sources.open import open_source
from models.vlir.sources.published import training_names
from models.vlir_config import SourceConfig
from tasks.progress import FETCH, board, show_megabytes
from tasks.settings import Settings
from tasks.uris import S3_SCHEME, S3Uri

_PLACES = ("data", "images", "scene_graphs", "boxes")
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
# Below a prefix, in this order: the first that matches any is taken.
_MANIFESTS = ("manifest.jsonl", "manifest.parquet")
_STATEMENTS = ("train.jsonl",)
_METADATA = ("*_cot_train.jsonl", "viscot_*.json")
_SCENE_GRAPHS = ("train_sceneGraphs.json",)
# Lines of a manifest may hold pictures; here they are only read for addresses.
_MAX_PICTURE_BYTES = 1 << 28


def check_source(config: SourceConfig, *, max_picture_bytes: int) -> None:
    """Look at what is cheap: local files and their columns, and whether there is anything in S3.

    Raises ConfigError or RecordError.
    """
    remote = [name for name in _PLACES if _is_remote(getattr(config, name))]
    if not remote:
        # Building an index of boxes takes minutes for the whole sets: that its files are there is enough.
        plain = config.model_copy(update={"boxes": "", "scene_graphs": ""})
        open_source(plain, max_picture_bytes=max_picture_bytes)
        for file in index_files(config):
            if not file.is_file():
                raise ConfigError(f"source {config.label!r}: {file} is missing.")
        return
    for name in remote:
        _check_remote(config, getattr(config, name), name)


def local_source(config: SourceConfig, settings: Settings) -> SourceConfig:
    """The source with local paths: what it reads in S3 is fetched, now or before.

    Of a public set only the files of its training split are fetched, of pictures only those that a row
    names. A picture that is not there is left to its reader, which counts it. Raises as :func:`check_source`,
    StoreError when the store fails.
    """
    local = {name: _absolute(getattr(config, name)) for name in (*_PLACES, "buckets")}
    found = config.model_copy(update=local)
    found = _with_data(found, settings)
    for name, patterns in (("scene_graphs", _SCENE_GRAPHS), ("boxes", _METADATA)):
        if _is_remote(getattr(config, name)):
            place = _fetched_files(getattr(config, name), patterns, settings)
            found = found.model_copy(update={name: place})
    if config.kind in ("manifest", "vsr", "visual_cot"):
        found = _with_pictures(config, found, settings)
    return found


def source_files(config: SourceConfig) -> Iterator[Path]:
    """Every local file that a source with local paths reads, or would read if it were there."""
    return files_of(config, max_picture_bytes=_MAX_PICTURE_BYTES)


def _with_data(config: SourceConfig, settings: Settings) -> SourceConfig:
    if config.kind in PARQUET_SETS:
        known = PARQUET_SETS[config.kind]
        return _with_splits(config, "data", known.name, (known.split,), settings)
    if config.kind == "gqa":
        splits = (gqa.INSTRUCTIONS,) if config.images else (gqa.INSTRUCTIONS, gqa.IMAGES)
        found = _with_splits(config, "data", "GQA", splits, settings)
        return _with_splits(found, "images", "GQA", (gqa.IMAGES,), settings)
    if not _is_remote(config.data):
        return config
    place = _fetched_files(config.data, _patterns_of(config, "data"), settings)
    return config.model_copy(update={"data": place})


def _with_splits(
    config: SourceConfig, place: str, what: str, splits: tuple[str, ...], settings: Settings
) -> SourceConfig:
    if not _is_remote(getattr(config, place)):
        return config
    from tasks.s3_mirror import RemoteFolder

    remote = RemoteFolder(getattr(config, place))
    names = [name for split in splits for name in training_names(what, split, remote)]
    return config.model_copy(update={place: _shown(lambda: remote.mirror(names, settings, show_megabytes))})


def _fetched_files(place: str, patterns: tuple[str, ...], settings: Settings) -> str:
    """A file, or a folder with the files below a prefix that a reader would take."""
    from tasks.s3_mirror import RemoteFolder, mirror_file

    if _is_file(place):
        return _shown(lambda: mirror_file(place, settings, show_megabytes))
    remote = RemoteFolder(place)
    names = _matching(remote.objects, patterns, place)
    return _shown(lambda: remote.mirror(names, settings, show_megabytes))


def _with_pictures(config: SourceConfig, local: SourceConfig, settings: Settings) -> SourceConfig:
    """Fetch the pictures that rows name: below a prefix, and by addresses of their own."""
    names: set[str] = set()
    addresses: set[str] = set()
    for places in named_pictures(local, max_picture_bytes=_MAX_PICTURE_BYTES):
        for each in places:
            (addresses if each.startswith(S3_SCHEME) else names).add(each)
    update: dict[str, str] = {}
    prefix = _picture_prefix(config)
    if names and _is_remote(prefix):
        from tasks.s3_mirror import RemoteFolder

        remote = RemoteFolder(prefix)
        there = names & remote.objects.keys()
        update["images"] = _shown(lambda: remote.mirror(there, settings, show_megabytes))
    if addresses:
        from tasks.s3_mirror import mirror_buckets

        update["buckets"] = _shown(lambda: mirror_buckets(addresses, settings, show_megabytes))
    return local.model_copy(update=update)


def _shown(fetch: Callable[[], Path]) -> str:
    """The place of what is fetched, shown while it is."""
    with board().stage(FETCH):
        return str(fetch())


def _picture_prefix(config: SourceConfig) -> str:
    """Where relative names of pictures start: a manifest's own folder, unless another is named."""
    if config.images or config.kind != "manifest":
        return config.images
    return config.data.rpartition("/")[0] if _is_file(config.data) else config.data


def _check_remote(config: SourceConfig, place: str, name: str) -> None:
    from tasks.s3 import S3
    from tasks.s3_mirror import RemoteFolder

    if _is_file(place):
        if S3().find(S3Uri.parse(place)) is None:
            raise ConfigError(f"source {config.label!r}: {name} {place}: there is no such object.")
        return
    remote = RemoteFolder(place)
    if name == "data" and config.kind in PARQUET_SETS:
        known = PARQUET_SETS[config.kind]
        training_names(known.name, known.split, remote)
    elif config.kind == "gqa" and name in ("data", "images"):
        training_names("GQA", gqa.INSTRUCTIONS if name == "data" else gqa.IMAGES, remote)
    elif name == "images":
        # Any picture will do: which ones are needed only the rows know.
        _ = remote.objects
    else:
        _matching(remote.objects, _patterns_of(config, name), place)


def _patterns_of(config: SourceConfig, name: str) -> tuple[str, ...]:
    if name == "scene_graphs":
        return _SCENE_GRAPHS
    if name == "boxes" or config.kind == "visual_cot":
        return _METADATA
    return _STATEMENTS if config.kind == "vsr" else _MANIFESTS


def _matching(names: Iterable[str], patterns: tuple[str, ...], place: str) -> list[str]:
    for pattern in patterns:
        found = sorted(name for name in names if fnmatchcase(name.rpartition("/")[2], pattern))
        if found:
            return found
    raise ConfigError(f"{place}: none of {', '.join(patterns)} is under this prefix.")


def _is_remote(place: str) -> bool:
    return place.startswith(S3_SCHEME)


def _is_file(place: str) -> bool:
    return place.lower().endswith(_FILE_SUFFIXES)


def _absolute(place: str) -> str:
    """A local path as every process understands it."""
    return place if not place or _is_remote(place) else str(Path(place).expanduser().absolute())
