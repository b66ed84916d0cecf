"""Artifacts in S3: ``<root>/<stage>/<digest prefix>/`` with the files, and the manifest, written last.

An artifact is there once its manifest is, and a manifest is written only where there is none: two writers of
one artifact send the same bytes to the same keys, two artifacts never share a key. What is fetched is checked
against the manifest and the manifest against the reference; it is kept under a local cache.
"""

from pathlib import Path

from models.errors import ArtifactError, StoreError
from tasks.artifacts import MANIFEST, PREFIX_LENGTH, ArtifactRef, FileStore, Manifest, OnProgress, local_path
from tasks.progress import FETCH, board, show_megabytes
from tasks.s3 import S3, RemoteObject
from tasks.s3_download import PART_SIZE, Wanted, download
from tasks.s3_upload import Outgoing, upload
from tasks.uris import S3_SCHEME, S3Uri

# The stage under which the local cache keeps everything.
_CACHED = "artifacts"
_MAX_TRIES = 3


class S3Store:
    """Artifacts under a prefix. Fetches any other artifact in S3 or on this machine too."""

    def __init__(self, root: str, cache: Path, *, part_size: int = PART_SIZE) -> None:
        self._root = S3Uri.parse(root)
        self._cache = FileStore(cache)
        self._part_size = part_size
        self._s3 = S3()

    def publish(self, folder: Path, *, stage: str, kind: str) -> ArtifactRef:
        """Keep a finished folder; the same content is kept once, and not sent again."""
        kept = self._cache.publish(folder, stage=_CACHED, kind=kind)
        local = local_path(kept.uri)
        manifest = Manifest.of(local)
        place = self._root.child(f"{stage}/{kept.sha256[:PREFIX_LENGTH]}")
        if self._find_manifest(place) != manifest:
            files = [
                Outgoing(local / name, place.child(name), entry.sha256, entry.size)
                for name, entry in manifest.files.items()
            ]
            upload(self._s3, files, part_size=self._part_size)
            self._finish(place, manifest)
        return ArtifactRef(uri=str(place), sha256=kept.sha256, kind=kind)

    def fetch(self, ref: ArtifactRef) -> Path:
        """The artifact's folder in the local cache, fetched now or before, checked once per process."""
        if not ref.uri.startswith(S3_SCHEME):
            return self._cache.fetch(ref)
        target = self._cache.root / _CACHED / ref.sha256[:PREFIX_LENGTH]
        if not target.is_dir():
            with board().stage(FETCH):
                self.fetch_into(ref, target, on_progress=show_megabytes)
        return self._cache.fetch(ArtifactRef(uri=target.as_uri(), sha256=ref.sha256, kind=ref.kind))

    def fetch_into(self, ref: ArtifactRef, target: Path, *, on_progress: OnProgress) -> None:
        """The artifact as a new folder, every file checked; an interrupted start is continued.

        Raises ArtifactError when it is missing or differs from its digest.
        """
        place = S3Uri.parse(ref.uri)
        manifest = self._find_manifest(place)
        if manifest is None:
            raise ArtifactError(f"Artifact {ref.uri} ({ref.kind}) is missing: it has no {MANIFEST}.")
        if manifest.sha256 != ref.sha256:
            raise ArtifactError(
                f"Artifact {ref.uri} ({ref.kind}) has digest {manifest.sha256[:12]}, expected "
                f"{ref.sha256[:12]}: its {MANIFEST} is not the one that was stored."
            )
        objects = {found.uri: found for found in self._s3.objects(place)}
        wanted = [
            Wanted(_sized(objects.get(place.child(name)), place, name, entry.size), name, entry.sha256)
            for name, entry in manifest.files.items()
        ]
        extra = {MANIFEST: manifest.text()}
        download(self._s3, wanted, target, on_progress=on_progress, extra=extra, part_size=self._part_size)

    def ref_of(self, uri: str, *, kind: str) -> ArtifactRef:
        """The reference to an artifact whose place is known. Raises ArtifactError if there is none."""
        manifest = self._find_manifest(S3Uri.parse(uri))
        if manifest is None:
            raise ArtifactError(f"{uri} is no artifact: it has no {MANIFEST}.")
        return ArtifactRef(uri=uri, sha256=manifest.sha256, kind=kind)

    def _finish(self, place: S3Uri, manifest: Manifest) -> None:
        """Write the manifest, unless another writer of the same artifact did."""
        for _ in range(_MAX_TRIES):
            data = manifest.text().encode()
            if self._s3.put(place.child(MANIFEST), data, if_absent=True):
                return
            kept = self._find_manifest(place)
            if kept == manifest:
                return
            if kept is not None:
                raise ArtifactError(
                    f"{place} holds another artifact ({kept.sha256[:12]}) than {manifest.sha256[:12]}. "
                    "Something else writes there: give the store a prefix of its own."
                )
        raise StoreError(f"{place}: the store would not take the manifest, and has none. Start again.")

    def _find_manifest(self, place: S3Uri) -> Manifest | None:
        found = self._s3.find(place.child(MANIFEST))
        return None if found is None else Manifest.read(self._s3.read(found).decode("utf-8"))


def _sized(found: RemoteObject | None, place: S3Uri, name: str, size: int) -> RemoteObject:
    if found is None or found.size != size:
        what = "is missing" if found is None else f"has {found.size} bytes"
        raise ArtifactError(
            f"{place.child(name)} {what}, and its manifest says {size} bytes. Publish the artifact again."
        )
    return found
