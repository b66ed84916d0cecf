"""Our HallusionBench scorer against vectors computed by the reference scorers."""

import pytest

from models.benchmarks.scorer import get_scorer, row_of
from tests.oracle_vectors import close, read_aggregate, read_vectors, summarise_vectors

NAME = "hallusionbench"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_score(vector):
    assert SCORER.score(row_of(vector, SCORER), vector["prediction"]) == close(vector["expected"])


def test_oracle_aggregate():
    found = summarise_vectors(NAME)
    assert found["n_vectors"] == len(VECTORS)
    assert found["primary"] == SCORER.primary
    assert found["metrics"] == close(read_aggregate(NAME))
