"""The rules of other harnesses for MathVista, against vectors computed by them."""

import pytest

from models.benchmarks.mathvista import is_right_by_lmms, is_right_by_vlmevalkit
from models.benchmarks.scorer import get_scorer, row_of
from tests.oracle_vectors import read_vectors

NAME = "mathvista"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harnesses(vector):
    row, others = row_of(vector, SCORER), vector["alt"]
    found = SCORER.score(row, vector["prediction"])
    by_lmms = is_right_by_lmms(row, found["normalized"])
    assert by_lmms == others["lmms_eval_precision_int"]["true_false"]
    by_vlmevalkit = is_right_by_vlmevalkit(row, found["extraction"])
    assert by_vlmevalkit == others["vlmevalkit_post_check_on_extraction"]
