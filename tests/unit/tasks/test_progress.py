"""The display says where a run is, how fast it goes and how long it will take."""

import pytest

from tasks import progress
from tasks.progress import Board, Row, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_running_stage_tells_share_rate_and_time_left(clock: list[float]) -> None:
    row = Row("sft", began=clock[0])
    clock[0] += 60  # a model is loaded
    row.update({"progress/done": 10, "progress/total": 200})
    assert row.line("[3/9]") == "[3/9] sft: 10/200 (5%)"
    clock[0] += 20
    row.update({"step": 50, "progress/done": 50, "progress/total": 200, "sft/loss": 0.3126})
    # 40 steps in 20 s are 2 per second; 150 are left: 75 s.
    assert row.line("[3/9]") == "[3/9] sft: 50/200 (25%), 2.0/s, 1 min 15 s left, loss 0.313"


def test_another_count_of_steps_begins_anew(clock: list[float]) -> None:
    row = Row("build_vlir", began=clock[0])
    for done, total in ((5000, 9000), (9000, 9000), (10, 100), (30, 100)):
        clock[0] += 2
        row.update({"progress/done": done, "progress/total": total})
    assert row.line("[1/1]") == "[1/1] build_vlir: 30/100 (30%), 10.0/s, 7 s left"


def test_lines_come_now_and_then_and_at_the_end(clock: list[float]) -> None:
    lines: list[str] = []
    board = Board(lines.append, ("build_vlir", "sft"))
    with board.stage("sft"):
        for step in range(1, 41):  # 40 steps, one per second
            clock[0] += 1
            board.update("sft", {"progress/done": step, "progress/total": 40, "sft/loss": 1.0})
    # The first update at once, then one every 10 s (after 11, 21 and 31 s), then the end.
    assert len(lines) == 5
    assert lines[0] == "[2/2] sft: 1/40 (2%), loss 1"
    assert lines[1] == "[2/2] sft: 11/40 (28%), 1.0/s, 29 s left, loss 1"
    assert lines[-1] == "[2/2] sft: done in 40 s, loss 1"


def test_a_stage_whose_work_never_starts_came_from_the_cache(clock: list[float]) -> None:
    lines: list[str] = []
    board = Board(lines.append, ("sft",))
    with board.stage("sft") as row:
        row.is_cached = True
    assert lines == ["[1/1] sft: from the cache"]
    with board.stage("sft") as row:
        row.is_cached = True
        clock[0] += 30  # waiting for cores is not work
        board.start("sft")
        clock[0] += 5
    assert lines[-1] == "[1/1] sft: done in 5 s"


def test_an_update_of_an_unknown_stage_is_ignored() -> None:
    board = Board(lambda line: pytest.fail(line))
    board.update("nothing", {"progress/done": 1})
    assert board.rows == {}


def test_the_table_has_a_line_per_stage(clock: list[float]) -> None:
    board = Board(lambda line: None)
    with board.stage("sft"):
        board.update("sft", {"progress/done": 1, "progress/total": 4})
        assert board.table().row_count == 1
