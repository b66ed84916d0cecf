"""What a tracker did not take before its run ended: kept in the work directory, delivered by the next run.

One file per tracked run, with the metrics and tags that are missing and how the run ended.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from models.rundir import write_atomically
from tasks.settings import Settings

logger = logging.getLogger(__name__)


class Point(BaseModel):
    """One value of a metric; ``when`` in milliseconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float
    when: int
    step: int


class Undelivered(BaseModel):
    """What a tracked run still has to say. ``tracker`` is where, without a password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracker: str
    run_id: str
    status: str
    points: tuple[Point, ...]
    tags: dict[str, str]


def keep(settings: Settings, undelivered: Undelivered) -> Path:
    """Keep it for the next run, and say where."""
    path = settings.undelivered / f"{undelivered.run_id}.json"
    write_atomically(path, undelivered.model_dump_json())
    return path


def deliver(settings: Settings, *, tracker: str, send: Callable[[Undelivered], bool]) -> None:
    """Send what is kept for this tracker, oldest first, until ``send`` returns False; what was sent goes."""
    kept = sorted(settings.undelivered.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in kept:
        try:
            undelivered = Undelivered.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # another run delivered it
            continue
        except ValidationError as error:
            logger.warning("%s is not what was kept there, and is left: %s", path, error)
            continue
        if undelivered.tracker == tracker:
            if not send(undelivered):
                return
            path.unlink(missing_ok=True)
            logger.warning("Run %s: %d late metrics delivered.", undelivered.run_id, len(undelivered.points))
