"""The commands that work on the artifact store: ``fetch`` and ``prune``."""

import argparse
import datetime
import sys
from contextlib import nullcontext
from pathlib import Path

from models.errors import ConfigError
from tasks import progress
from tasks.artifacts import is_copy, store_of
from tasks.model_source import find_artifact
from tasks.retention import outdated, remove
from tasks.services import sole_use
from tasks.settings import is_ci, prepare


def fetch(options: argparse.Namespace) -> int:
    """Bring an artifact into a folder of the caller's, checked file by file."""
    settings = prepare(options.work_dir)
    ref = find_artifact(options.artifact, settings)
    target: Path = options.folder.absolute()
    if is_copy(ref, target):
        print(f"{target} holds {ref.uri} already")
        return 0
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and holds something else. Name a folder that is new or empty.")
    board = progress.Board(_say, (progress.FETCH,))
    progress.use(board)
    is_terminal = sys.stderr.isatty() and not is_ci()
    with board.live() if is_terminal else nullcontext(), board.stage(progress.FETCH):
        if target.exists():
            target.rmdir()
        store_of(ref.uri, settings).fetch_into(ref, target, on_progress=progress.show_megabytes)
    print(f"{ref.uri}\nsha256 {ref.sha256}\n{target}")
    return 0


def prune(options: argparse.Namespace) -> int:
    """List the artifacts that nothing needs any more, and remove them if that is asked for."""
    if options.older_than < 1:
        raise ConfigError(
            f"--older-than {options.older_than}: less than 1 day could take what a run writes now."
        )
    settings = prepare(options.work_dir)
    with sole_use(settings):
        found = outdated(
            settings,
            older_than=datetime.timedelta(days=options.older_than),
            now=datetime.datetime.now(datetime.UTC),
        )
        for each in found:
            print(f"{each.modified:%Y-%m-%d}  {each.size / 1e6:10.1f} MB  {each.uri}")
        total = f"{len(found)} artifacts, {sum(each.size for each in found) / 1e6:.1f} MB"
        if options.delete:
            remove(found, settings)
            print(f"removed {total}")
        else:
            print(f"{total} could be removed; nothing was. Add --delete to remove them.")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
