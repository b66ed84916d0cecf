"""Our MME scorer against vectors computed by the reference scorers."""

import pytest

from models.benchmarks import mme
from models.benchmarks.scorer import get_scorer, row_of
from models.benchmarks.yes_or_no import yes_or_no
from tests.oracle_vectors import close, read_aggregate, read_vectors, summarise_vectors

NAME = "mme"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_score(vector):
    assert SCORER.score(row_of(vector, SCORER), vector["prediction"]) == close(vector["expected"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_rules(vector):
    text, others = vector["prediction"], vector["alt"]
    assert mme.parse_as_official(text) == others["mme_eval_tool"]["parsed"]
    assert yes_or_no(text) == others["vlmevalkit_exact"]["parsed"]


def test_oracle_aggregate():
    found = summarise_vectors(NAME)
    assert found["n_vectors"] == len(VECTORS)
    assert found["primary"] == SCORER.primary
    assert found["metrics"] == close(read_aggregate(NAME))
