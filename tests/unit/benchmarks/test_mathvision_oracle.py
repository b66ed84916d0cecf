"""The rules of other harnesses for MathVision, against vectors computed by them."""

import pytest

from models.benchmarks.mathvision import is_right
from models.benchmarks.scorer import get_scorer, row_of
from tests.oracle_vectors import read_vectors

NAME = "mathvision"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harnesses(vector):
    row, others = row_of(vector, SCORER), vector["alt"]
    found = SCORER.score(row, vector["prediction"])
    assert found["correct"] == others["lmms_eval_head"]
    without_functions = is_right(row, found["model_answer"], with_functions=False)
    assert without_functions == others["lmms_eval_0.7.3_wheel"]
