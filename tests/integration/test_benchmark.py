"""A miniature of MME as it really runs: a child process, the embedded base, the reference engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.benchmark_rows import read_asked
from models.rundir import RunDir
from tests.benchmark_examples import ROWS, mme_of_embedded_base

pytestmark = pytest.mark.integration


def test_the_embedded_base_answers_mme_the_same_twice(tmp_path: Path) -> None:
    config = mme_of_embedded_base(tmp_path, ROWS["mme"][1])
    answers = []
    for name in ("first", "second"):
        run = RunDir.create(tmp_path / name, config)
        command = [sys.executable, "-m", "models.evaluation.benchmark", str(run.path)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-2000:]
        assert all((run.path / path).is_file() for path in run.result().artifacts.values())
        results = BenchmarkResults.load(run.path / "metrics.json")
        assert (results.num_rows, results.num_scored, results.data.is_partial) == (2, 2, True)
        answers.append([(row.prediction, row.score) for row in read_asked(run.path / "predictions.parquet")])
    assert answers[0] == answers[1]
    assert all(text for text, _ in answers[0])
