"""The rows of a benchmark divided among ranks: the same results as alone, however often it is interrupted."""

import threading
from pathlib import Path

import pytest

from models.errors import ConfigError
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.benchmark_rows import read_asked
from models.evaluation.ranks import Share, this_launch, this_share
from models.trajectory import GenerationRequest
from tests.unit.evaluation.test_benchmark import Counted, config_of, mme_rows, run_of, set_of, yes

NUM_PAIRS = 100


def timeless(results: BenchmarkResults | None) -> BenchmarkResults:
    assert results is not None
    return results.model_copy(update={"seconds_per_question": 0.0})


def asked(engines: Counted) -> set[str]:
    return {request.request_id.removesuffix("#0") for request in engines.asked}


@pytest.fixture
def alone(tmp_path: Path) -> BenchmarkResults:
    config, published = config_of("mme", tmp_path), set_of("mme", tmp_path, mme_rows(NUM_PAIRS))
    (tmp_path / "alone").mkdir()
    return timeless(measure(run_of(tmp_path / "alone", config), config, published, Counted(yes)))


def test_ranks_side_by_side_come_to_the_results_of_one(tmp_path: Path, alone: BenchmarkResults) -> None:
    """Both at once, in two threads: the first waits for the other; one row of the other broke."""
    config, published = config_of("mme", tmp_path), set_of("mme", tmp_path, mme_rows(NUM_PAIRS))
    run = run_of(tmp_path, config)
    broken = frozenset({"OCR/3.png#7"})
    engines = [Counted(yes, broken=broken) for _ in range(3)]

    def rank(number: int) -> BenchmarkResults | None:
        share = Share(number, 3)
        return measure(run, config, published, engines[number], share=share, launch="one")

    others = [threading.Thread(target=rank, args=(number,)) for number in (1, 2)]
    for other in others:
        other.start()
    together = rank(0)
    for other in others:
        other.join()
    assert together is not None
    assert (together.num_scored, together.num_failed) == (2 * NUM_PAIRS - 1, 1)
    ids = [row.id for row in read_asked(run.path / "predictions.parquet")]
    assert [asked(one) for one in engines] == [set(ids[number::3]) for number in range(3)]
    assert not (run.path / "ranks").exists()

    # Another number of ranks finds every row but the broken one.
    again = Counted(yes)
    assert timeless(measure(run, config, published, again)) == alone
    assert asked(again) == broken


def test_a_rank_that_was_killed_costs_only_its_last_rows(tmp_path: Path, alone: BenchmarkResults) -> None:
    """Rank 1 of 2 is gone without a word after 90 of its 100 rows, 64 of them on disk; then one goes on."""
    config, published = config_of("mme", tmp_path), set_of("mme", tmp_path, mme_rows(NUM_PAIRS))
    run = run_of(tmp_path, config)
    numbers = iter(range(1000))

    class Killed(BaseException):
        pass

    def killed(request: GenerationRequest) -> str:
        if next(numbers) == 2 * 90:
            for path in (run.path / "rows").glob("*/*.parquet"):
                path.rename(path.with_suffix(".kept"))
            raise Killed
        return yes(request)

    with pytest.raises(Killed):
        measure(run, config, published, Counted(killed), share=Share(1, 2), launch="one")
    # What a process writes on its way out, a killed one does not.
    for path in (run.path / "rows").glob("*/*"):
        path.rename(path.with_suffix(".parquet")) if path.suffix == ".kept" else path.unlink()
    again = Counted(yes)
    assert timeless(measure(run, config, published, again)) == alone
    assert len(asked(again)) == 2 * NUM_PAIRS - 64


def test_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (this_share(), this_launch()) == (Share(0, 1), "")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert this_share() == Share(1, 2)
    for name in ("", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        with pytest.raises(ConfigError, match="torchrun --standalone"):
            this_launch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "f00")
    assert this_launch() == "f00"
