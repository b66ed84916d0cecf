"""Every benchmark in miniature, from its Parquet files to its metrics, answered by the embedded base."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.benchmarks.scorer import BENCHMARKS
from models.config import EMBEDDED_MODEL
from models.engine import Engine
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_rows import AskedRow, read_asked
from models.policy import Policy, load_policy
from models.presets import load_preset
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from models.transformers_engine import TransformersEngine
from tests.benchmark_examples import file_name, schema_of, small, write

pytestmark = pytest.mark.integration
PRESET = load_preset("tiny", ["engine.kind=transformers"])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(EMBEDDED_MODEL, dtype="float32")


@pytest.mark.parametrize("style", ["direct", "look-again"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_embedded_base_answers_every_row(name: str, style: str, policy: Policy, tmp_path: Path) -> None:
    published, split, rows = small(name)
    write(tmp_path / file_name(split), rows, schema_of(published))
    published = replace(published, splits={split: len(rows)})
    config = BenchmarkRun(
        benchmark=name,
        data_path=str(tmp_path),
        split=split,
        style=style,
        model_path="embedded",
        look=PRESET.look,
        engine=PRESET.engine,
        seed=0,
    )

    def open_engine() -> Engine:
        return TransformersEngine(policy, PRESET.engine)

    def attempt(folder: str) -> list[AskedRow]:
        run = RunDir.create(tmp_path / folder, config)
        results = measure(run, config, published, open_engine)
        assert (results.num_rows, results.num_scored) == (len(rows), len(rows))
        return [replace(row, seconds=0.0) for row in read_asked(run.path / "predictions.parquet")]

    first = attempt("first")
    assert all(row.score is not None and row.transcript.sampled_text for row in first)
    assert first == attempt("second")
