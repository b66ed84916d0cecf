"""What the guards of R-GRPO saw, from its metrics."""

import json
from pathlib import Path

from models.check import PREFLIGHT, Check, Preflight
from models.config import GuardsConfig, RGRPOConfig
from tasks.evidence import batch_checks, guards_of

CONFIG = RGRPOConfig(max_mismatch_kl=0.01, max_failed_share=0.02)


def record(folder: Path, *lines: dict[str, float]) -> Path:
    text = "".join(json.dumps({"time": 0.0, **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_of_a_step_that_was_done_again_the_last_line_counts(tmp_path: Path) -> None:
    guards = guards_of(
        record(
            tmp_path,
            {"step": 1, "rgrpo/mismatch_kl": 0.001, "rgrpo/unscored_share": 0.0, "progress/done": 1},
            {"step": 2, "rgrpo/mismatch_kl": 0.5, "rgrpo/unscored_share": 0.0},
            {"step": 2, "rgrpo/mismatch_kl": 0.003, "rgrpo/unscored_share": 0.02},
            {"step": 3, "time/rollout_seconds": 1.0},
        ),
        CONFIG,
    )
    assert guards.num_steps == 2
    kl = guards.metrics["rgrpo/mismatch_kl"]
    assert (kl.first, kl.last, kl.lowest, kl.highest, kl.mean) == (0.001, 0.003, 0.001, 0.003, 0.002)
    assert [(limit.name, limit.value, limit.passed) for limit in guards.limits[:2]] == [
        ("rgrpo/mismatch_kl", "0.003", True),
        ("rgrpo/unscored_share", "0.02", True),
    ]
    assert {limit.value for limit in guards.limits[2:]} == {"nothing to judge"}
    assert guards.passed


def test_a_broken_limit_and_missing_metrics_are_no_pass(tmp_path: Path) -> None:
    broken = guards_of(record(tmp_path, {"step": 1, "rgrpo/mismatch_kl": 0.011}), CONFIG)
    assert [limit.name for limit in broken.limits if not limit.passed] == ["rgrpo/mismatch_kl"]
    assert not broken.passed
    assert not guards_of(record(tmp_path), CONFIG).passed


def test_guards_that_were_off_and_a_batch_that_nobody_looked_at_are_no_pass(tmp_path: Path) -> None:
    """What other rules say does not stand for them."""
    off = CONFIG.model_copy(update={"guards": GuardsConfig(enabled=False)})
    found = guards_of(record(tmp_path, {"step": 1, "rgrpo/mismatch_kl": 0.001}), off)
    assert [(limit.name, limit.passed) for limit in found.limits] == [
        ("rgrpo/mismatch_kl", True),
        ("guards", False),
    ]
    assert not found.passed
    assert [check.passed for check in batch_checks(tmp_path)] == [False]
    kept = Preflight(checks=(Check(name="boxes", value="4 of 4", rule="all", passed=True),))
    (tmp_path / PREFLIGHT).write_text(kept.model_dump_json())
    assert batch_checks(tmp_path) == kept.checks


def test_the_limits_of_the_guards_are_looked_at_once_more(tmp_path: Path) -> None:
    lines = [
        {"step": step, "rgrpo/truncated_share": 0.1 * step, "rgrpo/entropy": 0.4, "rgrpo/stale_kl": 0.06}
        for step in range(1, 9)
    ]
    watched = CONFIG.model_copy(update={"guards": GuardsConfig(window=2)})
    found = {limit.rule: limit for limit in guards_of(record(tmp_path, *lines), watched).limits}
    assert found["mean over 2 steps at most 0.5"].value == "0.75"
    assert not found["mean over 2 steps at most 0.5"].passed
    assert found["mean over 2 steps at least 0.01"].passed
    assert found["mean over 2 steps at most 3"].passed
    assert (found["mean over 2 steps at most 0.05"].name, found["mean over 2 steps at most 0.05"].passed) == (
        "rgrpo/stale_kl",
        False,
    )


def test_a_run_shorter_than_a_window_is_judged_by_all_there_is(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "rgrpo/truncated_share": 0.4, "rgrpo/probe/crop_gain": 0.0},
        {"step": 2, "rgrpo/truncated_share": 0.9},
    ]
    guards = guards_of(record(tmp_path, *lines), CONFIG)
    found = {limit.name: (limit.value, limit.passed) for limit in guards.limits}
    assert found["rgrpo/truncated_share"] == ("0.65, over 2 only", False)
    assert found["rgrpo/probe/crop_gain"] == ("never bound the run", True)
    assert found["rgrpo/box_share"] == ("nothing to judge", True)
