"""Copies of a run's checkpoints in the store, so that a run that loses its machine goes on on another one.

They lie under ``<root>/checkpoints/<run>/step-N/``, where a run is named as its directory is: by its inputs,
configuration and code. A copy is there once its manifest is, which is written last. A thread makes them while
the stage trains; what it cannot do now it tries again, and training never waits for it nor fails with it.
"""

import logging
import re
import shutil
import threading
from collections import defaultdict
from pathlib import Path

from models.errors import ArtifactError, VLMR3Error
from models.rundir import RunDir, link_or_copy
from tasks.artifacts import CHECKPOINTS, MANIFEST, Manifest
from tasks.s3 import S3, RemoteObject
from tasks.s3_download import Wanted, download
from tasks.s3_upload import Outgoing, upload
from tasks.uris import S3Uri

log = logging.getLogger(__name__)

_STEP = re.compile(r"step-\d+")
_LOOK_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 120.0


class CheckpointCopies:
    """The copies of one run's checkpoints, of which the newest ``keep`` are kept."""

    def __init__(self, root: str, run: RunDir, *, keep: int) -> None:
        self._place = S3Uri.parse(root).child(f"{CHECKPOINTS}/{run.path.name}")
        self._run, self._keep = run, keep
        self._s3 = S3()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._copy_new_ones, name="checkpoint-copies", daemon=True)
        self.num_made = 0
        self.num_failed = 0

    def restore(self) -> None:
        """Fetch the newest copy that is newer than what the run directory has.

        A damaged one is passed over, loudly. Raises StoreError when the store does not deliver: beginning
        again in silence would cost what was trained.
        """
        here = [_step(path.name) for path in self._run.checkpoints()]
        for name, objects in reversed(self._complete().items()):
            if here and _step(name) <= here[-1]:
                return
            try:
                self._fetch(name, objects)
            except ArtifactError as error:
                log.warning("%s/%s is damaged, an older checkpoint is taken: %s", self._place, name, error)
            else:
                log.info("%s was fetched from %s", name, self._place)
                return

    def start(self) -> None:
        """Copy every new checkpoint from now on; when several are new, the newest of them."""
        self._thread.start()

    def stop(self, *, is_waited_for: bool = True) -> None:
        """Make no more copies, after the one of the newest checkpoint if that is waited for."""
        self._is_over.set()
        if is_waited_for:
            self._thread.join()

    def remove(self) -> None:
        """Remove all copies: the run is done. What the store refuses stays there, and is told."""
        self._remove(count=None)

    def _copy_new_ones(self) -> None:
        last, pause = "", _LOOK_SECONDS
        while True:
            is_last_look = self._is_over.wait(pause)
            found = self._run.checkpoints()
            if found and found[-1].name != last:
                try:
                    self._copy(found[-1])
                except (VLMR3Error, OSError) as error:
                    self.num_failed += 1
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    log.warning("%s was not copied to the store, training goes on: %s", found[-1].name, error)
                else:
                    self.num_made += 1
                    last, pause = found[-1].name, _LOOK_SECONDS
            if is_last_look:
                return

    def _copy(self, folder: Path) -> None:
        """Copy one checkpoint and remove the copies that are too old."""
        links = self._run.path / "copied" / folder.name
        shutil.rmtree(links.parent, ignore_errors=True)
        links.mkdir(parents=True)
        try:
            for path in folder.iterdir():  # the trainer may remove it meanwhile
                link_or_copy(path, links / path.name)
            manifest = Manifest.of(links)
            place = self._place.child(folder.name)
            files = [
                Outgoing(links / name, place.child(name), entry.sha256, entry.size)
                for name, entry in manifest.files.items()
            ]
            # An earlier start on another machine may have left one, of which files are now replaced.
            self._s3.remove(place.child(MANIFEST))
            upload(self._s3, files)
            self._s3.put(place.child(MANIFEST), manifest.text().encode())
        finally:
            shutil.rmtree(links.parent, ignore_errors=True)
        self._remove(count=-self._keep, newest=_step(folder.name))

    def _remove(self, *, count: int | None, newest: int | None = None) -> None:
        """Remove the oldest copies, all but so many; each by its manifest first, so that none is in part.

        So go those of steps after the ``newest``: they are damaged, the run went on from an older one.
        """
        try:
            copies = self._complete()
            later = [name for name in copies if newest is not None and _step(name) > newest]
            kept = [name for name in copies if name not in later]
            for objects in [copies[name] for name in (*later, *kept[:count])]:
                for found in sorted(objects.values(), key=lambda found: not found.uri.key.endswith(MANIFEST)):
                    self._s3.remove(found.uri)
            if count is None:
                for left in self._s3.objects(self._place):
                    self._s3.remove(left.uri)
        except VLMR3Error as error:
            log.warning("Old copies are left over under %s: %s", self._place, error)

    def _fetch(self, name: str, objects: dict[str, RemoteObject]) -> None:
        manifest = Manifest.read(self._s3.read(objects[MANIFEST]).decode())
        missing = manifest.files.keys() - objects.keys()
        if missing:
            raise ArtifactError(f"{sorted(missing)[0]} is not there.")
        wanted = [Wanted(objects[file], file, entry.sha256) for file, entry in manifest.files.items()]
        target = self._run.path / "checkpoints" / name
        download(self._s3, wanted, target, on_progress=lambda done, total: None)

    def _complete(self) -> dict[str, dict[str, RemoteObject]]:
        """The objects of every copy that has its manifest, by name; the oldest copy first."""
        copies: dict[str, dict[str, RemoteObject]] = defaultdict(dict)
        for found in self._s3.objects(self._place):
            name, _, file = self._place.name_of(found.uri).partition("/")
            if _STEP.fullmatch(name):  # what else lies there is somebody else's
                copies[name][file] = found
        return {name: copies[name] for name in sorted(copies, key=_step) if MANIFEST in copies[name]}


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))
