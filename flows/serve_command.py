"""`vlm-r3 serve`: a model behind an HTTP interface."""

import argparse

from flows.cli import LIMITS
from flows.console import quiet_logs
from models.presets import load_preset
from tasks.model_source import find_model
from tasks.serving import check_serving, run_server
from tasks.settings import prepare


def serve(options: argparse.Namespace) -> int:
    """Answer questions over HTTP until asked to end."""
    preset = load_preset(options.preset, options.overrides)
    settings = prepare(options.work_dir)
    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in LIMITS}
    config = check_serving(
        preset,
        options.model,
        settings=settings,
        host=options.host,
        port=options.port,
        model_name=options.model_name,
        allow_private_urls=options.allow_private_urls,
        limits={name: value for name, value in given.items() if value is not None},
    )
    quiet_logs()
    run_server(config, find_model(options.model, settings), say=lambda line: print(line, flush=True))
    return 0
