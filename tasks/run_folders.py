"""Run directories of this machine by what people call them."""

from pathlib import Path

from models.errors import ConfigError
from models.rundir import RunDir


def find_run(name: str, runs: Path) -> RunDir:
    """The run directory ``name``: a path, a folder under ``runs``, or a label such as ``rgrpo``, of which the
    newest counts.

    Raises ConfigError when there is none.
    """
    for path in (Path(name), runs / name):
        if (path / "config.json").is_file():
            return RunDir.open(path)
    of_label = [
        path.parent for path in runs.glob("*/config.json") if path.parent.name.rpartition("-")[0] == name
    ]
    if of_label:
        return RunDir.open(max(of_label, key=lambda path: (path / "config.json").stat().st_mtime))
    known = sorted(path.parent.name for path in runs.glob("*/config.json"))
    raise ConfigError(
        f"{name!r} is no run directory, and {runs} has none of that name or label. It has: "
        f"{', '.join(known) or 'none'}. Give one of these, or a path; --work-dir names another place."
    )
