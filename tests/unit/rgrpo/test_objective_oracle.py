"""Our advantages and objective against reference vectors computed by other implementations.

The folder is named by the environment variable ORACLE_DIR; any ``objective.jsonl`` of the same shape will do.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import ObjectiveConfig
from models.rgrpo.advantages import group_advantages
from models.rgrpo.objective import Totals, policy_loss

FOLDER = Path(os.environ.get("ORACLE_DIR", Path(__file__).parents[2] / "data" / "oracle"))
ROWS = [json.loads(line) for line in (FOLDER / "objective.jsonl").read_text(encoding="utf-8").splitlines()]
TOLERANCE = 1e-6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
@pytest.mark.parametrize(("key", "eps"), [("advantages_eps1e_4", 1e-4), ("advantages_eps1e_6", 1e-6)])
def test_oracle_advantages(row, key, eps):
    found = group_advantages(row["rewards"], group_size=row["group_size"], eps=eps)
    np.testing.assert_allclose(found.values, row[key], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("row", "aggregation"),
    [pytest.param(row, name, id=f"{row['id']}-{name}") for row in ROWS for name in row["losses"]],
)
def test_oracle_objective(row, aggregation):
    logprobs = torch.tensor(row["logprobs"], dtype=torch.float64, requires_grad=True)
    sampled = torch.tensor(row["sampled"], dtype=torch.bool)
    weight = row["engine_weight"]
    totals = Totals(
        num_questions=row["num_questions"],
        num_trajectories=len(row["rewards"]),
        num_tokens=int(sampled.sum()),
        max_tokens=sampled.shape[1],
    )
    loss = policy_loss(
        logprobs,
        old_logprobs=torch.tensor(row["old_logprobs"], dtype=torch.float64),
        advantages=torch.tensor(row["advantages_eps1e_4"], dtype=torch.float64),
        sampled=sampled,
        totals=totals,
        config=ObjectiveConfig(aggregation=aggregation, clip_low=row["clip_low"], clip_high=row["clip_high"]),
        engine_weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
    ).loss
    loss.backward()
    assert loss.item() == pytest.approx(row["losses"][aggregation], rel=0, abs=TOLERANCE)
    np.testing.assert_allclose(logprobs.grad, row["grads"][aggregation], rtol=0, atol=TOLERANCE)
