"""The rules of other harnesses for MME, against vectors computed by them."""

import pytest

from models.benchmarks import mme
from models.benchmarks.scorer import get_scorer
from models.benchmarks.yes_or_no import yes_or_no
from tests.oracle_vectors import read_vectors

NAME = "mme"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_rules(vector):
    text, others = vector["prediction"], vector["alt"]
    assert mme.parse_as_official(text) == others["mme_eval_tool"]["parsed"]
    assert yes_or_no(text) == others["vlmevalkit_exact"]["parsed"]
