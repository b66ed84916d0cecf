"""The commands that run stages, and ``doctor``. Prefect, MLflow and torch are imported only after everything
cheap is checked.
"""

import argparse
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from flows.console import Start, conduct
from flows.data_options import check_data, data_overrides
from flows.registry_commands import refusal
from models.check import Preflight
from models.config import resolve_model_path
from models.errors import GateError
from models.presets import DEFAULT_PRESET, load_preset
from tasks import progress
from tasks.preflight import check_preset, check_tracker
from tasks.settings import Settings, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from flows.pipeline import Outcome

    StageFlow = Callable[..., Coroutine[Any, Any, Any]]


def run_flow(options: argparse.Namespace) -> int:
    """Run a stage with what it needs, or the whole pipeline, on this machine."""
    started = time.monotonic()
    name, overrides, settings = checked(options)

    def load() -> Start:
        return partial(_flow(options.command), name, overrides, **_inputs(options, settings))

    outcome = conduct(settings, _stages(options.command), load)
    if options.command == "run":
        return close_pipeline(outcome, time.monotonic() - started)
    return _close_stage(options.command, outcome)


def checked(options: argparse.Namespace) -> tuple[str, list[str], Settings]:
    """Preset, overrides and settings of a command that runs stages, when all that is cheap to know is good.

    Raises ConfigError or TrackingError when it is not.
    """
    name = options.preset or DEFAULT_PRESET
    overrides = data_overrides(options, name, options.overrides)
    preset = load_preset(name, overrides)
    check_preset(preset)
    settings = prepare(options.work_dir, refresh=options.refresh)
    check_data(preset, settings)
    check_tracker(settings)
    return name, overrides, settings


def doctor(options: argparse.Namespace) -> int:
    """Print what was found; 1 when something is missing."""
    from tasks.doctor import examine

    settings = prepare(options.work_dir)
    is_well = True
    for finding in examine(settings, endpoint=options.endpoint):
        is_well &= finding.is_well
        remedy = "" if finding.is_well else f"\n     {'':18} -> {finding.remedy}"
        print(f"{'ok ' if finding.is_well else 'BAD'}  {finding.name:18} {finding.found}{remedy}", flush=True)
    return 0 if is_well else 1


def _flow(command: str) -> "StageFlow":
    """The flow of a command; importing it imports Prefect and MLflow."""
    from flows.build_vlir import build_vlir
    from flows.evaluate import evaluate
    from flows.pipeline import pipeline
    from flows.preflight import preflight
    from flows.promote import promote
    from flows.rgrpo import rgrpo
    from flows.sft import sft
    from flows.validate import validate

    flows: dict[str, StageFlow] = {
        "run": pipeline,
        "build-vlir": build_vlir,
        "validate": validate,
        "sft": sft,
        "preflight": preflight,
        "rgrpo": rgrpo,
        "evaluate": evaluate,
        "promote": promote,
    }
    return flows[command]


def _inputs(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """What a flow takes beside preset and overrides."""
    if options.command == "promote":
        return {"version": options.version}
    if options.command == "preflight" and options.model:
        from tasks.artifacts import reference
        from tasks.model_source import find_model

        folder = resolve_model_path(find_model(options.model, settings).path)
        return {"model": reference(folder, kind="model")}
    return {}


def _stages(command: str) -> tuple[str, ...]:
    """The stages that a command goes through, for the numbers on the display."""
    training = ("build_vlir", "validate", "sft", "rgrpo")
    upto = {"build-vlir": training[:1], "validate": training[:2], "sft": training[:3], "rgrpo": training}
    if command == "promote":
        return ("prepare", "promote")
    if command == "preflight":
        return ("prepare", *training[:3], "preflight")
    if command == "evaluate":
        return ("prepare", *progress.STAGES[: progress.STAGES.index("evaluate") + 1], "report")
    return ("prepare", *upto.get(command, progress.STAGES))


def close_pipeline(outcome: "Outcome", seconds: float) -> int:
    """Print what a pipeline came to in ``seconds``. Raises GateError when its version was not promoted."""
    from tasks.report import time_lines

    verdict = outcome.verdict
    print(f"\n{outcome.table}\n{time_lines(outcome.stage_times, seconds)}\n")
    aliases = "challenger, champion" if verdict.is_champion else "challenger"
    print(f"registered  vlm-r3 version {verdict.version} ({aliases})")
    print(f"report      {outcome.report}")
    if not verdict.is_champion:
        raise GateError(refusal(verdict.version, verdict.reasons))
    return 0


def _close_stage(command: str, outcome: Any) -> int:
    if command == "promote":
        if not outcome.is_champion:
            raise GateError(refusal(outcome.version, outcome.reasons))
        print(f"vlm-r3 version {outcome.version} is champion. " + " ".join(outcome.reasons))
        return 0
    if command == "preflight":
        from tasks.stage import read_store

        for check in Preflight.read(read_store().fetch(outcome.artifacts["preflight"])).checks:
            print(f"{'ok ' if check.passed else 'BAD'}  {check.name:20} {check.rule} (found: {check.value})")
        return 0
    for name, ref in outcome.artifacts.items():
        print(f"{name:12} {ref.uri}")
    for name, value in sorted(outcome.metrics.items()):
        print(f"{name:40} {value:g}")
    return 0
