"""The environment of a test, put back after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_dir_at(folder: Path) -> Iterator[Path]:
    """A work directory of runs named by the environment, as the command line would do, and nothing else set.

    Whatever the block changes in the environment is undone.
    """
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(("VLM_R3_", "PREFECT_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ["VLM_R3_WORK_DIR"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)
