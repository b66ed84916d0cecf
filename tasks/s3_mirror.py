"""Local copies of folders in S3, named by what was there: an object that changes gives another copy."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from models.errors import ConfigError
from models.rundir import write_atomically
from tasks.artifacts import OnProgress
from tasks.s3 import S3, RemoteObject
from tasks.s3_download import Wanted, download
from tasks.settings import Settings
from tasks.uris import S3Uri


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
        source = {
            "endpoint": self.s3.endpoint,
            "uri": str(self.uri),
            "objects": {each.name: {"size": each.found.size, "etag": each.found.etag} for each in wanted},
        }
        text = json.dumps(source, indent=1, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        target = settings.mirror / self.uri.bucket / key
        # Beside the folder: the digest of a copied model is that of the model.
        write_atomically(target.with_suffix(".json"), text)
        return download(self.s3, wanted, target, on_progress=on_progress)

    def __str__(self) -> str:
        return str(self.uri)
