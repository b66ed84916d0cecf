"""A run of a benchmark beside an earlier one: the same rows, paired, with an interval of the difference."""

from pathlib import Path

from models.errors import ScoringError
from models.evaluation.benchmark_files import RESULTS, ROWS, save
from models.evaluation.benchmark_results import (
    BenchmarkComparison,
    BenchmarkResults,
    OtherRun,
    worth,
)
from models.evaluation.benchmark_rows import read_asked
from models.evaluation.metrics import paired_bootstrap


def check_same_set(other: BenchmarkResults, *, name: str, benchmark: str, split: str, digest: str) -> None:
    """Raises ScoringError unless an earlier run was of this very set."""
    found = (other.data.benchmark, other.data.split, other.data.digest)
    if found != (benchmark, split, digest):
        raise ScoringError(
            f"{name!r} measured {found[0]}, split {found[1]!r}, data {found[2][:12]}; this run measures "
            f"{benchmark}, split {split!r}, data {digest[:12]}. Only runs of the same rows can be compared."
        )


def compare_with(folder: Path, other: Path, *, name: str) -> BenchmarkResults:
    """The results in a run's ``folder`` with the difference to those in ``other``, an earlier run called
    ``name``; its files are written again.

    Raises ScoringError when the two are not of the same rows, were not scored by the same rule, or have no
    scored row in common.
    """
    results, earlier = BenchmarkResults.load(folder / RESULTS), BenchmarkResults.load(other / RESULTS)
    data = results.data
    check_same_set(earlier, name=name, benchmark=data.benchmark, split=data.split, digest=data.digest)
    rules = [(one.scorer, one.scorer_version, one.headline_field) for one in (results, earlier)]
    if rules[0] != rules[1]:
        raise ScoringError(
            f"{name!r} was scored by {rules[1][0]} version {rules[1][1]} ({rules[1][2]}), this run by "
            f"{rules[0][0]} version {rules[0][1]} ({rules[0][2]}). Run the earlier one again."
        )
    rows = [read_asked(place / ROWS) for place in (folder, other)]
    ids = [{row.id for row in found} for found in rows]
    if ids[0] != ids[1]:
        raise ScoringError(
            f"{name!r} holds {len(ids[1] - ids[0])} rows that this run has not, and lacks "
            f"{len(ids[0] - ids[1])} of its {len(ids[0])}. Run it again."
        )
    worths = [
        {row.id: value for row in found if (value := worth(row, results.headline_field)) is not None}
        for found in rows
    ]
    difference, num_rows = paired_bootstrap(worths[0], worths[1], seed=results.seed)
    compared = results.model_copy(
        update={
            "comparison": BenchmarkComparison(
                against=OtherRun(
                    name=name, model=earlier.model, style=earlier.style, headline=earlier.headline
                ),
                difference=difference,
                num_rows=num_rows,
                num_left_out=len(ids[0]) - num_rows,
            )
        }
    )
    save(folder, compared)
    return compared
