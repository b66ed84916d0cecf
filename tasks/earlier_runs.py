"""Earlier runs of benchmarks by what people call them: a folder, an artifact's URI, or a tracked run."""

from pathlib import Path
from urllib.parse import urlsplit

from models.errors import ConfigError, ScoringError
from models.evaluation.benchmark_comparison import check_same_set
from models.evaluation.benchmark_files import RESULTS
from models.evaluation.benchmark_results import BenchmarkResults
from models.run_config import BenchmarkRun
from tasks.artifacts import ArtifactRef, local_path, store_of
from tasks.settings import Settings

KIND = "benchmark"  # of the artifact


def check_named(name: str) -> None:
    """What can be told about the name of an earlier run without asking the tracker.

    Raises ConfigError for a folder or URI that holds no results of a benchmark.
    """
    if (folder := _folder(name)) is not None:
        _results(folder, name)


def find_run(name: str, settings: Settings) -> Path:
    """The folder with the results and rows of an earlier run, fetched and checked if it lies elsewhere.

    ``name`` is a folder, a ``file://`` URI, any URI with ``#`` and the artifact's digest, or the id or name
    of a tracked run. Raises ConfigError when there is no such run.
    """
    if (folder := _folder(name)) is not None:
        return folder
    uri, _, digest = name.partition("#")
    if not urlsplit(uri).scheme:
        from tasks.tracking import find_artifact

        uri, digest = find_artifact(settings, name, KIND) or ("", "")
    if not digest:
        raise ConfigError(
            f"No earlier run of a benchmark is called {name!r}. Give the folder or the URI of its artifact "
            "(with #DIGEST unless it is file://), or the id or name of its tracked run."
        )
    return store_of(uri, settings).fetch(ArtifactRef(uri=uri, sha256=digest, kind=KIND))


def check_comparable(request: BenchmarkRun, folder: Path, name: str) -> None:
    """Raises ConfigError unless the earlier run in ``folder`` was of the set that is asked for."""
    earlier = _results(folder, name)
    try:
        check_same_set(
            earlier,
            name=name,
            benchmark=request.benchmark,
            split=request.split,
            # A request that accepts any data is compared when they are known.
            digest=request.data_digest or earlier.data.digest,
        )
    except ScoringError as error:
        raise ConfigError(str(error)) from error


def _folder(name: str) -> Path | None:
    """The local folder that a path or a ``file://`` URI without a digest names; None for anything else."""
    if name.startswith("file://") and "#" not in name:
        return local_path(name)
    path = Path(name).expanduser()
    return path.absolute() if path.is_dir() else None


def _results(folder: Path, name: str) -> BenchmarkResults:
    try:
        return BenchmarkResults.load(folder / RESULTS)
    except ScoringError as error:
        raise ConfigError(f"{name!r} is no earlier run of a benchmark. {error}") from error
