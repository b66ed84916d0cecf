"""The benchmark of what training costs, at its smallest: it runs and counts what it says."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.training_cost import NAME, PARTS, main

pytestmark = pytest.mark.integration


def test_every_table_is_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--questions", "2", "--group-size", "2", "--studied", "1", "--doublings", "1", "--steps", "1"]
    main([*small, "--threads", "1", "--work-dir", str(tmp_path)])
    found = json.loads((tmp_path / "bench" / f"{NAME}.json").read_text())
    assert sum(found["shares"][part] for part in PARTS) == pytest.approx(1)
    assert all(found["seconds"][part] > 0 for part in PARTS)
    # The 2 rollouts of a question share its prompt with the view; of their 2 crops one is looked at.
    # Engine and trainer ask for every picture, and it is looked at once.
    assert found["rates"]["share of pictures looked at before"] == pytest.approx(2 / 3)
    assert 0 < found["weight_update"]["copy_seconds"] < found["weight_update"]["seconds"]
    assert found["training"]["flops_per_second"] > 0
    names = [(line["name"], line["unit"], line["sizes"]) for line in found["lines"]]
    assert names[0] == ("R-GRPO step", "rollouts of a question", [2, 4])
    assert names[4] == ("SFT step", "pictures of a trajectory", [1, 2])
    assert names[7][:2] == ("SFT step", "tokens of a sequence")
    assert 80 <= names[7][2][0] < 100
    assert 160 <= names[7][2][1] < 180
    assert found["plots"] == [f"{NAME}.svg", f"{NAME}.png"]
    assert (tmp_path / "bench" / f"{NAME}.png").stat().st_size > 10_000
    assert "weight update" in capsys.readouterr().out
