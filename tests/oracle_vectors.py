"""The reference vectors of the benchmark scorers, from the folder that ORACLE_DIR names.

Any folder with files of the same shape will do: ``<benchmark>.jsonl`` holds one vector a line (``row``,
``prediction``, ``expected``), ``<benchmark>.aggregate.json`` the final metrics over exactly those rows.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from models.benchmarks.scorer import get_scorer, row_of, summary

FOLDER = Path(os.environ.get("ORACLE_DIR", Path(__file__).parent / "data" / "oracle"))
TOLERANCE = 1e-9


def read_vectors(name: str) -> list[dict[str, Any]]:
    """All vectors of a benchmark; fails when there is none."""
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    # Predictions hold characters at which splitlines would cut too.
    vectors = [json.loads(line) for line in text.split("\n") if line]
    assert vectors, f"{FOLDER}/{name}.jsonl holds no vector"
    return vectors


def read_aggregate(name: str) -> dict[str, Any]:
    """The metrics of a benchmark's vectors; fails when the file speaks of another number of rows."""
    found = json.loads((FOLDER / f"{name}.aggregate.json").read_text(encoding="utf-8"))
    assert found["n_vectors"] == len(read_vectors(name))
    return found["metrics"]


def summarise_vectors(name: str) -> dict[str, Any]:
    """Our summary of all vectors of a benchmark."""
    scorer, vectors = get_scorer(name), read_vectors(name)
    rows = [row_of(vector, scorer) for vector in vectors]
    predictions = [vector["prediction"] for vector in vectors]
    scores = [scorer.score(row, text) for row, text in zip(rows, predictions, strict=True)]
    assert len(scores) == len(vectors)
    return summary(scorer, rows, predictions, scores)


def close(expected: Any) -> Any:
    """``expected`` with every number, at any depth, compared within the tolerance."""
    if isinstance(expected, dict):
        return {key: close(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [close(value) for value in expected]
    if isinstance(expected, float):
        return pytest.approx(expected, rel=0, abs=TOLERANCE)
    return expected
