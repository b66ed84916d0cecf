"""The artifact store: folders named by the digest of what they hold.

An artifact is a folder of files and a manifest (size and sha256 of every file). The manifest's digest is the
artifact's identity, ``<root>/<stage>/<digest prefix>/`` its place; names are pointers. Stored files are
read-only, and every first read in a process checks them against the manifest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import ArtifactError, ConfigError
from models.rundir import link_or_copy, write_atomically
from tasks.settings import Settings
from tasks.uris import safe_name

# Bytes that are here, bytes in all.
OnProgress = Callable[[int, int], None]

MANIFEST = "artifact.json"
CHECKPOINTS = "checkpoints"  # where copies of them lie, beside the stages of artifacts
PREFIX_LENGTH = 16


class ArtifactRef(BaseModel):
    """What moves between stages: where a folder is, the digest of its manifest, and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str
    kind: str


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Manifest(BaseModel):
    """The files of an artifact by their path inside it, with forward slashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileEntry]

    @classmethod
    def of(cls, folder: Path) -> "Manifest":
        """The manifest of a folder as it is now. Raises ArtifactError for links and for an empty folder."""
        paths = sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name != MANIFEST)
        if not paths:
            raise ArtifactError(f"{folder} holds no file, so there is nothing to keep. Did its stage finish?")
        for path in paths:
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(f"{path} is not a plain file; an artifact holds copies, not links.")
        return cls(files={path.relative_to(folder).as_posix(): _entry(path) for path in paths})

    @classmethod
    def read(cls, text: str) -> "Manifest":
        """A manifest from its text. Raises ArtifactError when it is none, or names a file outside."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(f"{MANIFEST} is no manifest of an artifact: {error}") from error
        for name in manifest.files:
            safe_name(name)
        return manifest

    @property
    def sha256(self) -> str:
        """The identity of the artifact."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def text(self) -> str:
        """Canonical JSON: sorted keys, so that equal content has an equal digest."""
        return json.dumps(self.model_dump(), sort_keys=True, indent=1)


class Store(Protocol):
    """Where artifacts are kept."""

    def publish(self, folder: Path, *, stage: str, kind: str) -> ArtifactRef:
        """Keep a finished folder. The same content is kept once."""

    def fetch(self, ref: ArtifactRef) -> Path:
        """A local, verified, read-only folder with the artifact's files.

        Raises ArtifactError when it is missing or differs from its digest.
        """

    def fetch_into(self, ref: ArtifactRef, target: Path, *, on_progress: OnProgress) -> None:
        """The same as a new folder that is the caller's; an interrupted start is continued."""

    def ref_of(self, uri: str, *, kind: str) -> ArtifactRef:
        """The reference to an artifact whose place is known. Raises ArtifactError if there is none."""


def open_store(root: str, *, cache: Path) -> Store:
    """The store at a URI; ``cache`` keeps local copies of what lies elsewhere.

    Raises ConfigError for a scheme it does not know.
    """
    scheme = urlsplit(root).scheme
    if scheme == "s3":
        from tasks.s3_store import S3Store

        return S3Store(root, cache)
    if scheme != "file":
        raise ConfigError(
            f"The artifact store {root!r} has scheme {scheme or 'none'!r}. "
            "Known: file:// with an absolute path, and s3://bucket/prefix."
        )
    return FileStore(local_path(root))


def store_of(uri: str, settings: Settings) -> Store:
    """The store that can fetch an artifact, whatever store the settings name for new ones."""
    is_here = urlsplit(uri).scheme == "file"
    root = settings.work_dir.as_uri() if is_here else uri
    return open_store(root, cache=settings.fetched)


class FileStore:
    """Artifacts under a local folder. Also fetches any other artifact of this machine, where it lies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[ArtifactRef] = set()

    def publish(self, folder: Path, *, stage: str, kind: str) -> ArtifactRef:
        """Keep a finished folder, linked where the file system can, else copied; it appears all at once."""
        manifest = Manifest.of(folder)
        target = self.root / stage / manifest.sha256[:PREFIX_LENGTH]
        ref = ArtifactRef(uri=target.as_uri(), sha256=manifest.sha256, kind=kind)
        if not (target / MANIFEST).is_file():
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            for name in manifest.files:
                _keep(folder / name, partial / name)
            write_atomically(partial / MANIFEST, manifest.text())
            _move(partial, target)
        self.fetch(ref)
        return ref

    def fetch(self, ref: ArtifactRef) -> Path:
        """The artifact's folder, checked against its digest once per process."""
        folder = local_path(ref.uri)
        if not folder.is_dir():
            raise ArtifactError(
                f"Artifact {ref.uri} ({ref.kind}) is missing. Run with --refresh to make it again."
            )
        if ref not in self._verified:
            _check(folder, ref)
            self._verified.add(ref)
        return folder

    def fetch_into(self, ref: ArtifactRef, target: Path, *, on_progress: OnProgress) -> None:
        """The artifact as a new folder of copies, every file checked before; at once or not at all."""
        source = self.fetch(ref)
        partial = target.with_name(f"{target.name}.partial")
        manifest, done = Manifest.of(source), 0
        for name, entry in manifest.files.items():
            copy = partial / name
            if not copy.is_file() or _entry(copy) != entry:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.unlink(missing_ok=True)
                shutil.copyfile(source / name, copy)
            done += entry.size
            on_progress(done, manifest.size)
        write_atomically(partial / MANIFEST, manifest.text())
        if not is_copy(ref, partial):
            raise ArtifactError(f"{partial} holds more than {ref.uri}. Remove it and start again.")
        partial.rename(target)

    def ref_of(self, uri: str, *, kind: str) -> ArtifactRef:
        """The reference to an artifact whose place is known. Raises ArtifactError if there is none."""
        manifest = local_path(uri) / MANIFEST
        if not manifest.is_file():
            raise ArtifactError(f"{uri} is no artifact: it has no {MANIFEST}.")
        return ArtifactRef(
            uri=uri, sha256=Manifest.read(manifest.read_text(encoding="utf-8")).sha256, kind=kind
        )


def is_copy(ref: ArtifactRef, folder: Path) -> bool:
    """Whether a folder holds exactly what the artifact holds."""
    return folder.is_dir() and any(folder.iterdir()) and Manifest.of(folder).sha256 == ref.sha256


def reference(folder: Path, *, kind: str) -> ArtifactRef:
    """A reference to a folder that stays where it is, such as a base model."""
    return ArtifactRef(uri=folder.absolute().as_uri(), sha256=Manifest.of(folder).sha256, kind=kind)


def digest_of(folder: Path) -> str:
    """The identity of what a folder holds. The manifest of an artifact is believed: fetching checks it."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    return Manifest.of(folder).sha256


def local_path(uri: str) -> Path:
    """The path of a ``file://`` URI. Raises ArtifactError for another scheme or a relative path."""
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc or not path.is_absolute():
        raise ArtifactError(f"{uri!r} is not a local artifact: it must be file:// with an absolute path.")
    return path


def _check(folder: Path, ref: ArtifactRef) -> None:
    found = Manifest.of(folder)
    if found.sha256 == ref.sha256:
        return
    damaged = "its files"
    if (folder / MANIFEST).is_file():
        try:
            kept = Manifest.model_validate_json((folder / MANIFEST).read_text()).files
        except ValidationError:
            kept = {}
        differing = sorted(
            name for name in kept.keys() | found.files if kept.get(name) != found.files.get(name)
        )
        damaged = ", ".join(differing[:5]) or damaged
    raise ArtifactError(
        f"Artifact {ref.uri} ({ref.kind}) has digest {found.sha256[:12]}, expected {ref.sha256[:12]}: "
        f"{damaged} changed after it was stored. Remove it and run with --refresh."
    )


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, size=path.stat().st_size)


def _keep(source: Path, target: Path) -> None:
    """Put one file into the store, read-only, without a second copy where the file system allows that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)
    target.chmod(0o444)


def _move(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        # Another writer of the same content was first; its files are equal by construction.
        if not (target / MANIFEST).is_file():
            raise
        shutil.rmtree(partial)
