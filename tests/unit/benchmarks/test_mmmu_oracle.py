"""Our MMMU scorer against vectors computed by the reference scorers."""

import pytest

from models.benchmarks.mmmu import is_multiple_choice, is_right_by_vlmevalkit, options_of
from models.benchmarks.mmmu_parsing import LMMS_LOOKS, parse_option
from models.benchmarks.scorer import get_scorer, row_of
from tests.oracle_vectors import close, read_aggregate, read_vectors, summarise_vectors

NAME = "mmmu"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_score(vector):
    assert SCORER.score(row_of(vector, SCORER), vector["prediction"]) == close(vector["expected"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_harnesses(vector):
    row, text, others = vector["row"], vector["prediction"], vector["alt"]
    assert is_right_by_vlmevalkit(row, text) == others["vlmevalkit_exact"]["hit"]
    if is_multiple_choice(row):
        assert parse_option(text, options_of(row), LMMS_LOOKS) == others["lmms_eval"]["parsed"]
    else:
        kept_as_text = SCORER.score(row, text)["correct_if_gold_kept_as_string"]
        assert kept_as_text == others["lmms_eval_0.7.3_wheel"]["correct"]


def test_oracle_aggregate():
    found = summarise_vectors(NAME)
    assert found["n_vectors"] == len(VECTORS)
    assert found["primary"] == SCORER.primary
    assert found["metrics"] == close(read_aggregate(NAME))
