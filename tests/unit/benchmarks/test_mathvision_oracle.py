"""Our MathVision scorer against vectors computed by the reference scorers."""

import pytest

from models.benchmarks.mathvision import is_right
from models.benchmarks.scorer import get_scorer, row_of
from tests.oracle_vectors import close, read_aggregate, read_vectors, summarise_vectors

NAME = "mathvision"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_score(vector):
    assert SCORER.score(row_of(vector, SCORER), vector["prediction"]) == close(vector["expected"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harnesses(vector):
    row, others = row_of(vector, SCORER), vector["alt"]
    found = SCORER.score(row, vector["prediction"])
    assert found["correct"] == others["lmms_eval_head"]
    without_functions = is_right(row, found["model_answer"], with_functions=False)
    assert without_functions == others["lmms_eval_0.7.3_wheel"]


def test_oracle_aggregate():
    found = summarise_vectors(NAME)
    assert found["n_vectors"] == len(VECTORS)
    assert found["primary"] == SCORER.primary
    # Not repeated: VLMEvalKit lets Python evaluate the model's text, see models/benchmarks/mathvision.py.
    expected = {key: value for key, value in read_aggregate(NAME).items() if not key.startswith("vlmevalkit")}
    assert found["metrics"] == close(expected)
