"""Find the benchmarks that were measured: in the artifact store, or in any folder of runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.errors import ArtifactError, ConfigError
from models.evaluation.benchmark_results import BENCHMARK_VERSION, BenchmarkResults
from models.evaluation.model_table import Measured
from tasks.artifacts import MANIFEST, Manifest, local_path
from tasks.settings import Settings

_RESULTS = "metrics.json"
_KIND = BENCHMARK_VERSION.split("/")[0]


def measured_benchmarks(places: Sequence[str]) -> list[Measured]:
    """Every result of a benchmark under the places, each once; no place: this workspace's store.

    A place is a folder or a ``file://`` store. Raises ConfigError for a place that is neither, ArtifactError
    for a stored result that changed after it was stored, ScoringError for one of another version.
    """
    found: dict[str, Measured] = {}
    for path in (
        path for place in places or [Settings.read().artifacts] for path in _files(place, bool(places))
    ):
        data = path.read_bytes()
        if not _is_benchmark(data):
            continue
        _check(path, data)
        digest = hashlib.sha256(data).hexdigest()  # a run directory and the store hold the same file
        measured = Measured(BenchmarkResults.load(path), str(path.parent), path.stat().st_mtime)
        known = found.get(digest)
        if known is None or measured.written < known.written:
            found[digest] = measured
    return list(found.values())


def _files(place: str, is_named: bool) -> Iterator[Path]:
    if "://" in place and not place.startswith("file://"):
        raise ConfigError(
            f"{place} is no local store. Copy its 'benchmark' folder here and give that to --runs."
        )
    folder = local_path(place) if "://" in place else Path(place).expanduser()
    if not folder.is_dir():
        if is_named:
            raise ConfigError(f"--runs {place}: there is no such folder.")
        return
    yield from sorted(folder.rglob(_RESULTS))


def _is_benchmark(data: bytes) -> bool:
    """Whether a file holds results of a benchmark, of whatever version; other stages write other results."""
    try:
        version = json.loads(data).get("version")
    except (ValueError, AttributeError):
        return False
    return isinstance(version, str) and version.split("/")[0] == _KIND


def _check(path: Path, data: bytes) -> None:
    manifest = path.with_name(MANIFEST)
    if not manifest.is_file():
        return
    try:
        entry = Manifest.model_validate_json(manifest.read_text()).files.get(path.name)
    except ValueError as error:
        raise ArtifactError(f"{manifest} is no manifest: {error}") from error
    if entry is None or entry.sha256 != hashlib.sha256(data).hexdigest():
        raise ArtifactError(f"{path} changed after it was stored. Remove the folder and run again.")
