"""The command ``retrain``: the pipeline where the sources have something new, else a line that says so."""

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING

from flows.commands import close_pipeline
from flows.console import Start, conduct
from flows.data_options import check_data, data_overrides
from models.presets import DEFAULT_PRESET, load_preset
from tasks import progress
from tasks.preflight import check_preset, check_tracker
from tasks.settings import prepare

if TYPE_CHECKING:
    from flows.retrain import Retrained


def retrain(options: argparse.Namespace) -> int:
    """Train again if there is anything new; 0 when there is not, and as ``run`` when there is."""
    started = time.monotonic()
    name = options.preset or DEFAULT_PRESET
    overrides = data_overrides(options, name, options.overrides)
    preset = load_preset(name, overrides)
    check_preset(preset)
    settings = prepare(options.work_dir, refresh=options.refresh)
    check_data(preset, settings)
    check_tracker(settings)

    def load() -> Start:
        from flows.retrain import retrain as flow

        return partial(flow, name, overrides)

    found: Retrained = conduct(settings, ("prepare", "look_for_news", *progress.STAGES), load)
    if found.outcome is None:
        print(found)
        return 0
    print(found.plan)
    return close_pipeline(found.outcome, time.monotonic() - started)
