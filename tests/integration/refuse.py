"""A gate that says no: ``... NAME REASONS``."""

import sys

from prefect.events.worker import EventsWorker

from tasks.events import tell_refusal

tell_refusal(sys.argv[1], sys.argv[2])
EventsWorker.drain_all(timeout=20)
