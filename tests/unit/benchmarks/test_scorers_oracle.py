"""Every scorer against vectors computed by its reference: all fields of every score, and the aggregate."""

import pytest

from models.benchmarks.scorer import BENCHMARKS, get_scorer, row_of
from tests.oracle_vectors import close, read_aggregate, read_vectors, summarise_vectors

VECTORS = [
    pytest.param(name, vector, id=f"{name}-{vector['id']}")
    for name in BENCHMARKS
    for vector in read_vectors(name)
]
# VLMEvalKit lets Python evaluate the model's text, see models/benchmarks/mathvision.py.
NOT_REPEATED = {"mathvision": "vlmevalkit"}


@pytest.mark.parametrize(("name", "vector"), VECTORS)
def test_oracle_score(name, vector):
    scorer = get_scorer(name)
    assert scorer.score(row_of(vector, scorer), vector["prediction"]) == close(vector["expected"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_oracle_aggregate(name):
    found, expected = summarise_vectors(name), read_aggregate(name)
    assert found["n_vectors"] == len(read_vectors(name))
    assert found["primary"] == get_scorer(name).primary
    left_out = NOT_REPEATED.get(name)
    kept = {key: value for key, value in expected.items() if not (left_out and key.startswith(left_out))}
    assert found["metrics"] == close(kept)
