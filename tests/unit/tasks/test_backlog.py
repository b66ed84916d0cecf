"""What a tracker missed waits on disk, for the tracker that it is meant for."""

from pathlib import Path

import pytest

from tasks import backlog
from tasks.backlog import Point, Undelivered
from tasks.settings import Settings


def undelivered(run_id: str, tracker: str = "http://a") -> Undelivered:
    point = Point(name="sft/loss", value=0.5, when=1, step=1)
    return Undelivered(tracker=tracker, run_id=run_id, status="FINISHED", points=(point,), tags={})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_goes_to_its_tracker_once(work_dir: Path) -> None:
    settings, sent = Settings.read(), list[Undelivered]()

    def send(one: Undelivered) -> bool:
        sent.append(one)
        return True

    mine, other = undelivered("mine"), undelivered("other", "http://b")
    backlog.keep(settings, mine)
    backlog.keep(settings, other)
    for _ in range(2):
        backlog.deliver(settings, tracker="http://a", send=send)
    assert sent == [mine]
    assert names(settings.undelivered) == ["other.json"]


def test_what_is_refused_or_unreadable_stays(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.read()
    backlog.keep(settings, undelivered("a"))
    (settings.undelivered / "b.json").write_text("{")
    backlog.deliver(settings, tracker="http://a", send=lambda one: False)
    backlog.deliver(settings, tracker="http://b", send=lambda one: pytest.fail("not for this tracker"))
    assert names(settings.undelivered) == ["a.json", "b.json"]
    assert "b.json is not what was kept there, and is left" in caplog.text
