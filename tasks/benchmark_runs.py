"""Published benchmarks that two models have both been measured on, from the tracked runs."""

from models.evaluation.benchmark_files import RESULTS
from models.evaluation.benchmark_results import BenchmarkResults
from tasks import tracking
from tasks.artifacts import ArtifactRef, store_of
from tasks.earlier_runs import KIND
from tasks.settings import Settings

# The parameter of a run that says whose weights were measured.
WEIGHTS = "weights_digest"


def differences(settings: Settings, new: str, old: str) -> dict[str, float]:
    """Headlines of the weights ``new`` minus those of ``old``, shares from -1 to 1, by benchmark and style.

    Both are digests. Only runs of the same rows by the same rule are compared; of several the newest counts.
    """
    found, before = _headlines(settings, new), _headlines(settings, old)
    return {" ".join(key[:2]): found[key] - before[key] for key in sorted(found.keys() & before.keys())}


def _headlines(settings: Settings, weights: str) -> dict[tuple[str, ...], float]:
    """Headline by (benchmark, style, what else must be the same)."""
    headlines: dict[tuple[str, ...], float] = {}
    for kept in tracking.find_artifacts(settings, stage="benchmark", name=KIND, param=WEIGHTS, value=weights):
        uri, _, digest = kept.partition("#")
        folder = store_of(uri, settings).fetch(ArtifactRef(uri=uri, sha256=digest, kind=KIND))
        run = BenchmarkResults.load(folder / RESULTS)
        if run.variant == "full":
            same = (run.data.split, run.data.digest, run.scorer, run.scorer_version, run.headline_field)
            headlines[run.data.benchmark, run.style, *same] = run.headline.value
    return headlines
