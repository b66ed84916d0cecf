"""The rules of other harnesses for DocVQA, against vectors computed by them."""

import pytest

from models.benchmarks.scorer import get_scorer
from tests.oracle_vectors import close, read_vectors

NAME = "docvqa"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harness(vector):
    # VLMEvalKit's ANLS is the same number, so one function serves for both.
    assert vector["alt"]["vlmevalkit_anls"] == close(vector["expected"]["anls"])
