"""The throughput benchmark at its smallest: it runs and counts the same work in every way."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.rollout_throughput import NAME, main

pytestmark = pytest.mark.integration


def test_all_ways_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--questions", "3", "--repeats", "1", "--crops", "1", "--out", str(tmp_path)])
    stages = json.loads((tmp_path / f"{NAME}.json").read_text())["stages"]
    # Three trajectories of two turns; three rows of one.
    assert {name: stage["passes"]["loop"][0]["requests"] for name, stage in stages.items()} == {
        "look-again": 6,
        "direct": 3,
    }
    for stage in stages.values():
        (loop,), (raw,), (ready,) = (stage["passes"][name] for name in ("loop", "raw", "ready"))
        assert loop["sampled"] == raw["sampled"] == ready["sampled"] >= 24 * loop["requests"]
        assert loop["prefilled"] == raw["prefilled"] == ready["prefilled"] > 0
        assert loop["seconds"] > loop["engine_seconds"] > 0
        assert stage["ratio"]["raw"] > 0
    assert "look-again" in capsys.readouterr().out
