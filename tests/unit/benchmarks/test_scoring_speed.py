"""Ten thousand predictions are scored and summed up in less than ten seconds, by every rule."""

import re
import time
from itertools import count, islice

import pytest

from models.benchmarks.scorer import BENCHMARKS, get_scorer, row_of, summary
from tests.oracle_vectors import read_vectors

NUM_PREDICTIONS = 10_000
SECONDS = 10.0
# The column that keeps the copies of a group of rows apart.
GROUPED_BY = {"mme": "question_id", "hallusionbench": "set_id"}


def copies(name: str):
    """The vectors again and again: each copy a group of its own, its numbers its own, so that nothing that a
    rule remembers of one copy helps with the next.
    """
    scorer, vectors = get_scorer(name), read_vectors(name)
    for number in count():
        for vector in vectors:
            row = dict(row_of(vector, scorer))
            if column := GROUPED_BY.get(name):
                row[column] = f"{number}-{row[column]}"
            yield row, re.sub(r"(\d+)", rf"\g<1>{number}", vector["prediction"], count=1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_ten_thousand_predictions(name: str) -> None:
    scorer = get_scorer(name)
    num_vectors = len(read_vectors(name))
    # Whole copies only: a metric over groups refuses half a group.
    num = -(-NUM_PREDICTIONS // num_vectors) * num_vectors
    rows, texts = zip(*islice(copies(name), num), strict=True)
    started = time.process_time()
    scores = [scorer.score(row, text) for row, text in zip(rows, texts, strict=True)]
    found = summary(scorer, rows, texts, scores)
    seconds = time.process_time() - started
    assert found["n_vectors"] == num >= NUM_PREDICTIONS
    assert seconds < SECONDS, f"{num} predictions of {name} took {seconds:.1f} s of CPU time"
