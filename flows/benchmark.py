"""One published benchmark on one model: `vlm-r3 evaluate --benchmark NAME`."""

import asyncio
from pathlib import Path

from prefect import flow

from flows.parameters import Overrides, Parent, PresetName
from models.baselines import get_baseline
from models.config import Style
from models.presets import load_preset
from tasks.benchmark import run_benchmark
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import request_of
from tasks.settings import Settings
from tasks.stage import StageOutput, perform


@flow(name="benchmark")
async def benchmark(
    name: str,
    data: str,
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    split: str = "",
    style: Style = "look-again",
    variant: str = "full",
    allow_partial: bool = False,
    baseline: str = "",
    data_digest: str = "",
    accept_data_digest: str = "",
    lock: str = "",
    title: str = "",
    against: str = "",
    parent: Parent = "",
) -> StageOutput:
    """Ask and score every row of a set; artifact ``benchmark``.

    A ``baseline`` is a known model, whose settings are among the overrides. The model is ``model.path`` of
    the preset (a folder, ``models:/``, ``s3://``), or with ``engine.kind`` http whatever the endpoint serves;
    ``variant`` names how its crop commands are answered. ``data`` is a folder or an ``s3://`` prefix;
    ``lock`` is the file of pinned digests (in the work directory). ``title`` is what the tracked run is
    called, ``against`` names an earlier run to compare with (:mod:`tasks.earlier_runs`).
    """
    settings, run = Settings.read(), load_preset(preset, overrides or ())
    pinning = Pinning(
        Path(lock) if lock else settings.benchmark_lock, demanded=data_digest, accepted=accept_data_digest
    )
    request = await asyncio.to_thread(
        request_of,
        name,
        data,
        run,
        split=split,
        style=style,
        variant=variant,
        allow_partial=allow_partial,
        baseline=get_baseline(baseline) if baseline else None,
        settings=settings,
        pinning=pinning,
    )
    output: StageOutput = await perform(
        run_benchmark,
        label="benchmark",
        parent=parent,
        request=request,
        name=title,
        against=against,
        # An endpoint batches the requests of one process; a checkpoint needs an engine per process.
        num_ranks=1 if run.engine.kind == "http" else run.evaluation.num_ranks,
        num_threads=run.evaluation.num_threads or run.engine.num_threads,
    )
    return output
