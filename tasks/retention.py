"""Which artifacts of the store nothing needs any more, and their removal.

Kept is what any registered version names in its evidence, and whatever is young. What a publication left that
never finished goes with the old ones, and so do the copies of checkpoints of a run that has made none for so
long. Nothing outside ``<root>/<stage>/<digest>`` and ``<root>/checkpoints/<run>/step-N`` is looked at.
"""

import datetime
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import CHECKPOINTS, MANIFEST, local_path
from tasks.settings import Settings
from tasks.uris import S3_SCHEME, S3Uri

# The folder of an artifact, or what an interrupted publication left of one.
_NAME = re.compile(r"[0-9a-f]{16}(\.\d+\.partial)?")
_IN_S3 = re.compile(rf"(?:[^/]+/{_NAME.pattern}|{CHECKPOINTS}/[^/]+(?=/step-\d+/))(?=/)")


@dataclass(frozen=True, slots=True)
class Stored:
    """The folder of an artifact, or of a run's copies of checkpoints; ``size`` in bytes, ``modified`` is when
    its newest file was written."""

    uri: str
    size: int
    modified: datetime.datetime


def outdated(settings: Settings, *, older_than: datetime.timedelta, now: datetime.datetime) -> list[Stored]:
    """What may be removed: old, and named by no registered version."""
    found = _in_s3(settings.artifacts) if _is_s3(settings) else _in_folder(local_path(settings.artifacts))
    old = [each for each in found if now - each.modified > older_than]
    kept = named_by_versions(settings) if old else frozenset()
    return sorted((each for each in old if each.uri not in kept), key=lambda each: each.modified)


def remove(stored: Iterable[Stored], settings: Settings) -> None:
    """Remove artifacts, each by its manifest first: what is left half-way is no artifact any more."""
    if _is_s3(settings):
        from tasks.s3 import S3

        s3 = S3()
        for each in stored:
            objects = list(s3.objects(S3Uri.parse(each.uri)))
            for found in sorted(objects, key=lambda found: not found.uri.key.endswith(f"/{MANIFEST}")):
                s3.remove(found.uri)
    else:
        for each in stored:
            (local_path(each.uri) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(local_path(each.uri))


def named_by_versions(settings: Settings) -> frozenset[str]:
    """Every address that a registered version names: its weights, data, verdict, evaluation."""
    from tasks.model_source import has_registry

    if not has_registry(settings):
        return frozenset()
    from tasks.versions import all_versions

    named = [
        address
        for version in all_versions()
        for address in (version.model.uri, *version.tags.values())
        if address.startswith((S3_SCHEME, "file://"))
    ]
    return frozenset(address.partition("#")[0].rstrip("/") for address in named)


def _is_s3(settings: Settings) -> bool:
    return settings.artifacts.startswith(S3_SCHEME)


def _in_folder(root: Path) -> Iterator[Stored]:
    for folder in sorted(root.glob("*/*")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        if _NAME.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink() and files:
            newest = max(path.stat().st_mtime for path in [folder, *files])
            modified = datetime.datetime.fromtimestamp(newest, datetime.UTC)
            yield Stored(folder.as_uri(), sum(path.stat().st_size for path in files), modified)


def _in_s3(root: str) -> Iterator[Stored]:
    from tasks.s3 import S3

    prefix = S3Uri.parse(root)
    sizes: dict[str, int] = defaultdict(int)
    newest: dict[str, datetime.datetime] = {}
    for found in S3().objects(prefix):
        if folder := _IN_S3.match(prefix.name_of(found.uri)):
            uri = str(prefix.child(folder[0]))
            sizes[uri] += found.size
            newest[uri] = max(newest.get(uri, found.modified), found.modified)
    for uri, size in sizes.items():
        yield Stored(uri, size, newest[uri])
