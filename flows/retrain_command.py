"""The command ``retrain``: the pipeline where the sources have something new, else a line that says so."""

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING

from flows.commands import checked, close_pipeline
from flows.console import Start, conduct
from tasks import progress

if TYPE_CHECKING:
    from flows.retrain import Retrained


def retrain(options: argparse.Namespace) -> int:
    """Train again if there is anything new; 0 when there is not, and as ``run`` when there is."""
    started = time.monotonic()
    name, overrides, settings = checked(options)

    def load() -> Start:
        from flows.retrain import retrain as flow

        return partial(flow, name, overrides)

    found: Retrained = conduct(settings, ("prepare", "look_for_news", *progress.STAGES), load)
    if found.outcome is None:
        print(found)
        return 0
    print(found.plan)
    return close_pipeline(found.outcome, time.monotonic() - started)
