"""The rules of other harnesses for MMMU, against vectors computed by them."""

import pytest

from models.benchmarks.mmmu import is_multiple_choice, is_right_by_vlmevalkit, options_of
from models.benchmarks.mmmu_parsing import LMMS_LOOKS, parse_option
from models.benchmarks.scorer import get_scorer
from tests.oracle_vectors import read_vectors

NAME = "mmmu"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harnesses(vector):
    row, text, others = vector["row"], vector["prediction"], vector["alt"]
    assert is_right_by_vlmevalkit(row, text) == others["vlmevalkit_exact"]["hit"]
    if is_multiple_choice(row):
        assert parse_option(text, options_of(row), LMMS_LOOKS) == others["lmms_eval"]["parsed"]
    else:
        kept_as_text = SCORER.score(row, text)["correct_if_gold_kept_as_string"]
        assert kept_as_text == others["lmms_eval_0.7.3_wheel"]["correct"]
