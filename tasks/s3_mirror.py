"""Local copies of folders in S3, named by what was there: an object that changes gives another copy."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from models.ahead import ahead
from models.errors import ArtifactError, ConfigError
from models.rundir import write_atomically
from tasks.artifacts import OnProgress
from tasks.s3 import NUM_CONNECTIONS, S3, RemoteObject
from tasks.s3_download import Wanted, download
from tasks.settings import Settings
from tasks.uris import S3_SCHEME, S3Uri


class RemoteFolder:
    """What lies under a prefix. It is listed once: everything is read as it was then."""

    def __init__(self, uri: str) -> None:
        self.uri = S3Uri.parse(uri)
        self.s3 = S3()

    @cached_property
    def objects(self) -> dict[str, RemoteObject]:
        """The objects by their name below the prefix. Raises ConfigError when there is none."""
        found = {self.uri.name_of(each.uri): each for each in self.s3.objects(self.uri)}
        if not found:
            raise ConfigError(
                f"{self.uri}: there is nothing under this prefix. Is it spelled as it was written?"
            )
        return found

    def names(self) -> Iterable[str]:
        """The names of all Parquet files."""
        return [name for name in self.objects if name.endswith(".parquet")]

    def open(self, name: str) -> BinaryIO:
        """An object of which only what is read is fetched."""
        return cast(BinaryIO, self.s3.open(self.objects[name]))

    def mirror(self, names: Iterable[str], settings: Settings, on_progress: OnProgress) -> Path:
        """A local folder with these objects alone, fetched now or before; ``FOLDER.json`` says of what."""
        wanted = [Wanted(self.objects[name], name) for name in sorted(names)]
        return mirror_objects(self.s3, wanted, str(self.uri), settings, on_progress)

    def __str__(self) -> str:
        return str(self.uri)


def mirror_file(uri: str, settings: Settings, on_progress: OnProgress) -> Path:
    """A local copy of one object, under its own name. Raises ConfigError when there is none."""
    s3, parsed = S3(), S3Uri.parse(uri)
    found = s3.find(parsed)
    if found is None:
        raise ConfigError(f"{uri}: there is no such object. Is it spelled as it was written?")
    folder, _, name = parsed.key.rpartition("/")
    place = str(S3Uri(parsed.bucket, folder))
    return mirror_objects(s3, [Wanted(found, name)], place, settings, on_progress) / name


def mirror_buckets(uris: Iterable[str], settings: Settings, on_progress: OnProgress) -> Path:
    """A local folder with copies of objects anywhere, in one folder per bucket; one that is not there is left
    out.
    """
    s3 = S3()
    parsed = sorted({each for uri in uris if (each := _parsed(uri))}, key=str)
    wanted = [
        Wanted(found, f"{uri.bucket}/{uri.key}")
        for uri, found in ahead(s3.find, parsed, num_ahead=8 * NUM_CONNECTIONS, num_threads=NUM_CONNECTIONS)
        if found is not None
    ]
    return mirror_objects(s3, wanted, "buckets", settings, on_progress)


def mirror_objects(
    s3: S3, wanted: Sequence[Wanted], place: str, settings: Settings, on_progress: OnProgress
) -> Path:
    """A local folder with these objects alone, which lie in ``place``; another version of one of them gives
    another folder.
    """
    source = {
        "endpoint": s3.endpoint,
        "uri": place,
        "objects": {each.name: {"size": each.found.size, "etag": each.found.etag} for each in wanted},
    }
    text = json.dumps(source, indent=1, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    target = settings.mirror / place.removeprefix(S3_SCHEME).partition("/")[0] / key
    # Beside the folder: the digest of a copied model is that of the model.
    write_atomically(target.with_suffix(".json"), text)
    if not wanted:
        target.mkdir(exist_ok=True)
        return target
    return download(s3, wanted, target, on_progress=on_progress)


def _parsed(uri: str) -> S3Uri | None:
    """None for what is no address of an object: its reader says so of the row."""
    try:
        parsed = S3Uri.parse(uri)
    except (ConfigError, ArtifactError):
        return None
    return parsed if parsed.key else None
