"""The rules of other harnesses for ScienceQA, against vectors computed by them."""

import pytest

from models.benchmarks import scienceqa
from models.benchmarks.option_matching import infer_option
from models.benchmarks.scorer import get_scorer
from tests.oracle_vectors import read_vectors, summarise_vectors

NAME = "scienceqa"
SCORER = get_scorer(NAME)
VECTORS = read_vectors(NAME)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_oracle_other_rules(vector):
    row, text, others = vector["row"], vector["prediction"], vector["alt"]
    assert scienceqa.lmms_may2025(row, text) == others["lmms_eval_2025-05-19_5a1a31c8"]["score"]
    assert scienceqa.llava(row, text) == others["llava_eval_science_qa"]["score"]
    assert scienceqa.lenient(row, text) == others["vlmevalkit_exact"]["score"]
    assert (infer_option(text, dict(zip("ABCDE", row["choices"]))) or "Z") == others["vlmevalkit_exact"][
        "parsed"
    ]
    assert (scienceqa.llava_letter(text) or "FAILED") == others["llava_eval_science_qa"]["parsed"]
    assert (scienceqa.sentence_letter(text.strip()) or "FAILED") == others["scienceqa_run_gpt3"]["parsed"]


def test_oracle_random_fallback():
    # What the authors' script would guess is counted, and nothing else.
    guessed = sum(vector["alt"]["scienceqa_run_gpt3"]["random_fallback"] for vector in VECTORS)
    assert summarise_vectors(NAME)["counts"]["official_random_fallback"] == guessed
