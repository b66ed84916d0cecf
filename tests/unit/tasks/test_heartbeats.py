"""Signs of life of nodes: who is lost, and who only seems to be."""

import os
from pathlib import Path

import pytest

from tasks import heartbeats
from tasks.heartbeats import Heart, Watch


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(heartbeats.time, "monotonic", lambda: self.now)

    def looks(self, watch: Watch, count: int, *, apart: float = 1.0) -> list[int | None]:
        """What so many looks find, so many seconds apart."""
        found = []
        for _ in range(count):
            self.now += apart
            found.append(watch.lost())
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def beat(folder: Path, index: int, at: int) -> None:
    Heart(folder, index).beat()
    os.utime(folder / f"alive-{index}", (at, at))


def test_a_node_that_falls_silent_is_lost_and_one_that_beats_is_not(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [1, 2], seconds=10)
    found = []
    for second in range(30):
        beat(tmp_path, 1, second)
        if second < 10:
            beat(tmp_path, 2, second)
        found += clock.looks(watch, 1)
    assert found[:19] == [None] * 19
    assert found[19] == 2


def test_a_heart_beats_every_few_seconds_however_often_it_is_told_to(tmp_path: Path, clock: Clock) -> None:
    heart = Heart(tmp_path, 0)
    beats = []
    for _ in range(20):
        clock.now += 0.5
        os.utime(tmp_path / "alive-0", (1, 1)) if beats else None
        heart.beat()
        beats.append((tmp_path / "alive-0").stat().st_mtime > 1)
    assert beats == [True, False, False, False] * 5


def test_a_node_that_has_not_come_yet_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    beat(tmp_path, 1, 5)  # in an earlier try of the job
    watch = Watch(tmp_path, [1, 2], seconds=10)
    assert clock.looks(watch, 500) == [None] * 500


def test_a_node_that_went_between_two_stages_counts_from_the_second_on(tmp_path: Path, clock: Clock) -> None:
    """During a stage of one rank nobody watches; what an earlier launch has left is no sign of life."""
    beat(tmp_path, 1, 5)
    beat(tmp_path, 2, 5)
    assert clock.looks(Watch(tmp_path, [1, 2], seconds=10), 1) == [None]
    beat(tmp_path, 1, 6)
    found = clock.looks(Watch(tmp_path, [1, 2], seconds=10), 10)
    assert found == [None] * 9 + [1]


def test_a_clock_that_is_set_back_is_a_sign_of_life_as_well(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [1], seconds=10)
    for second in range(40):
        beat(tmp_path, 1, 1000 - second)
        assert clock.looks(watch, 1) == [None]


def test_nobody_is_given_up_for_the_time_in_which_nobody_could_look(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [1], seconds=10)
    beat(tmp_path, 1, 1)
    assert clock.looks(watch, 1) == [None]
    assert clock.looks(watch, 9, apart=600.0) == [None] * 9
    beat(tmp_path, 1, 2)
    assert clock.looks(watch, 10) == [None] * 10


def test_asking_more_often_makes_nobody_lost_sooner(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [1], seconds=10)
    beat(tmp_path, 1, 1)
    assert clock.looks(watch, 39, apart=0.25) == [None] * 39


def test_zero_gives_nobody_up(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [1], seconds=0)
    beat(tmp_path, 1, 1)
    assert clock.looks(watch, 1000) == [None] * 1000


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Heart(tmp_path / "file" / "job", 0).beat()
