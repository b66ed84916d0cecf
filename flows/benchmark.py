"""One published benchmark on one model: `vlm-r3 evaluate --benchmark NAME`."""

from prefect import flow

from models.baselines import get_baseline
from models.config import Style
from models.presets import load_preset
from tasks.benchmark import run_benchmark
from tasks.benchmark_request import request_of
from tasks.stage import StageOutput, perform


@flow(name="benchmark")
async def benchmark(
    name: str,
    data: str,
    preset: str = "tiny",
    overrides: list[str] | None = None,
    split: str = "",
    style: Style = "look-again",
    allow_partial: bool = False,
    baseline: str = "",
    parent: str = "",
) -> StageOutput:
    """Ask and score every row of a set; artifact ``benchmark``.

    A ``baseline`` is a known model, whose settings are among the overrides. The model is ``model.path`` of
    the preset, or with ``engine.kind`` http whatever the endpoint serves.
    """
    request = request_of(
        name,
        data,
        load_preset(preset, overrides or ()),
        split=split,
        style=style,
        allow_partial=allow_partial,
        baseline=get_baseline(baseline) if baseline else None,
    )
    output: StageOutput = await perform(run_benchmark, label="benchmark", parent=parent, request=request)
    return output
