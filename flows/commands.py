"""What the commands do. Prefect, MLflow and torch are imported only after everything cheap is checked."""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.baselines import Baseline, get_baseline, read_baselines
from models.errors import ConfigError, GateError
from models.presets import load_preset
from tasks import progress
from tasks.analysis_request import check_analysis
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import baseline_place, check_request, judge_overrides, model_overrides
from tasks.earlier_runs import check_named
from tasks.model_source import champion_or, find_model
from tasks.preflight import check_preset
from tasks.services import prefect_server, sole_use
from tasks.settings import is_ci, prepare

if TYPE_CHECKING:
    from flows.pipeline import Outcome
    from models.inference import Answer
    from tasks.stage import StageOutput

# Options that mean something only beside --benchmark.
_BENCHMARK_OPTIONS = (
    *("data", "split", "style", "variant", "baseline", "model", "endpoint", "served_model", "allow_partial"),
    *("data_digest", "accept_data_digest", "lock", "title", "against"),
    *("judge_endpoint", "judge_model"),
)
_PRESET = "tiny"  # where none is named

StageFlow = Callable[..., Coroutine[Any, Any, Any]]


def run_flow(options: argparse.Namespace) -> int:
    """Run a stage with what it needs, or the whole pipeline, on this machine."""
    started = time.monotonic()
    name = options.preset or _PRESET
    preset = load_preset(name, options.overrides)
    check_preset(preset)
    settings = prepare(options.work_dir, refresh=options.refresh)
    board = progress.Board(_say, (*_stages(options.command),))
    progress.use(board)
    with sole_use(settings), _display(board), prefect_server(settings) as server:
        with board.stage("prepare"):
            flow = _flow(options.command)
            quiet_logs()
            if server:
                server.wait()
        inputs = {"version": options.version} if options.command == "promote" else {}
        outcome = asyncio.run(flow(name, options.overrides, **inputs))
    if options.command == "run":
        return _close_pipeline(outcome, time.monotonic() - started)
    return _close_stage(options.command, outcome)


def names_benchmark(options: argparse.Namespace) -> bool:
    """Whether a published benchmark is asked for. Raises ConfigError when only its options are given."""
    if options.benchmark:
        return True
    given = [f"--{name.replace('_', '-')}" for name in _BENCHMARK_OPTIONS if getattr(options, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} need a benchmark, and none is named. Add --benchmark NAME.")
    return False


def run_benchmark(options: argparse.Namespace) -> int:
    """Run a published benchmark on a model or an endpoint and print its table."""
    if not options.data:
        raise ConfigError(
            f"--benchmark {options.benchmark} needs --data FOLDER (or s3://...): where its Parquet files are."
        )
    baseline = get_baseline(options.baseline) if options.baseline else None
    preset, overrides = _who_answers(options, baseline)
    overrides += judge_overrides(endpoint=options.judge_endpoint, model=options.judge_model)
    settings = prepare(options.work_dir, refresh=options.refresh)
    lock = options.lock.absolute() if options.lock else settings.benchmark_lock
    Pinning(lock, demanded=options.data_digest, accepted=options.accept_data_digest)
    style = options.style or ("look-again" if baseline is None else "direct")
    variants = (options.variant or "full").split(",")
    choice = {"split": options.split, "style": style, "allow_partial": options.allow_partial}
    check_request(
        options.benchmark,
        options.data,
        load_preset(preset, overrides),
        variants=variants,
        settings=settings,
        baseline=baseline,
        **choice,
    )
    if options.against:
        check_named(options.against)
    choice |= {
        "baseline": options.baseline,
        "data_digest": options.data_digest,
        "accept_data_digest": options.accept_data_digest,
        "lock": str(lock),
        "title": options.title,
        "against": options.against,
    }
    board = progress.Board(_say, ("prepare", progress.FETCH, "benchmark"))
    progress.use(board)
    with sole_use(settings), _display(board), prefect_server(settings) as server:
        with board.stage("prepare"):
            from flows.benchmark import benchmark

            quiet_logs()
            if server:
                server.wait()
        asked = (options.benchmark, options.data, preset, overrides)
        outcomes = [asyncio.run(benchmark(*asked, variant=variant, **choice)) for variant in variants]
    for outcome in outcomes:
        _close_benchmark(outcome)
    return 0


def analyse(options: argparse.Namespace) -> int:
    """Make an analysis of the paper, print its table and say where its figure is."""
    chosen = model_overrides(model="", endpoint=options.endpoint, served_model=options.served_model)
    overrides = [*options.overrides, *chosen]
    sets = list(zip(options.benchmark, options.data, strict=False))
    if len(options.benchmark) != len(options.data):
        raise ConfigError(
            f"{len(options.benchmark)} --benchmark and {len(options.data)} --data: every benchmark needs the "
            "folder of its files. Give both, as often as there are benchmarks."
        )
    preset = load_preset(options.preset, overrides)
    models = {
        "model_path": options.model,
        "base_path": options.base_model,
        "sft_path": options.sft_model,
        "no_sft_path": options.no_sft_model,
    }
    settings = prepare(options.work_dir, refresh=options.refresh)
    check_analysis(
        options.analysis,
        preset,
        models=models,
        benchmarks=sets,
        allow_partial=options.allow_partial,
        settings=settings,
    )
    board = progress.Board(_say, _analysis_stages(options))
    progress.use(board)
    with sole_use(settings), _display(board), prefect_server(settings) as server:
        with board.stage("prepare"):
            from flows.analyse import analyse as make

            quiet_logs()
            if server:
                server.wait()
        outcome = asyncio.run(
            make(
                options.analysis,
                options.preset,
                overrides,
                models,
                sets,
                allow_partial=options.allow_partial,
                num_questions=options.questions,
            )
        )
    return _close_analysis(outcome, options.out)


def _who_answers(options: argparse.Namespace, baseline: Baseline | None) -> tuple[str, list[str]]:
    """The preset and its overrides: a known model's settings, then ``--set``, then where the model is."""
    where = {"model": options.model, "endpoint": options.endpoint, "served_model": options.served_model}
    if baseline is None:
        return options.preset or _PRESET, [*options.overrides, *model_overrides(**where)]
    place = baseline_place(baseline, **where)
    return options.preset or baseline.preset, [*baseline.overrides(), *options.overrides, *place]


def table(options: argparse.Namespace) -> int:
    """Print what was measured beside what is published."""
    from models.evaluation.model_table import build_table
    from models.evaluation.model_table_formats import FORMATS
    from models.published_numbers import read_published
    from tasks.measured import measured_benchmarks

    prepare(options.work_dir)
    measured = measured_benchmarks(options.runs)
    shown = build_table(read_published(), measured, read_baselines(), number=options.paper_table)
    print(FORMATS[options.format](shown), end="")
    if not measured:
        _say("Nothing was measured yet: vlm-r3 evaluate --benchmark NAME --data FOLDER; or name --runs.")
    return 0


def ask(options: argparse.Namespace) -> int:
    """Ask a model one question, tell how it comes to its answer, and draw what it looked at."""
    from models.annotation import annotate
    from models.inference import answer_of
    from models.region import Size
    from tasks.ask import ask as ask_model
    from tasks.ask import check_picture, open_engine, read_question

    preset = load_preset(options.preset, options.overrides)
    question = read_question(options.image, options.question)
    picture = check_picture(options.picture or Path(f"{options.image.stem}-looked.png"))
    settings = prepare(options.work_dir)
    model = find_model(options.model or champion_or(preset.model.path, settings), settings)
    engine = open_engine(model.path, preset)
    trajectory = ask_model(question, engine, preset.look, _silent if options.json else _tell)
    annotate(trajectory, [question.image()], preset.look.budget).save(picture)
    size = Size(question.width, question.height)
    answer = answer_of(trajectory, [size], preset.look.budget, engine.encoder.decode)
    name = model.source or model.path
    print(_answer_json(answer, name, picture) if options.json else _answer_text(answer, name, picture))
    return 0


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


def _flow(command: str) -> StageFlow:
    """The flow of a command; importing it imports Prefect and MLflow."""
    from flows.build_vlir import build_vlir
    from flows.evaluate import evaluate
    from flows.pipeline import pipeline
    from flows.promote import promote
    from flows.rgrpo import rgrpo
    from flows.sft import sft
    from flows.validate import validate

    flows: dict[str, StageFlow] = {
        "run": pipeline,
        "build-vlir": build_vlir,
        "validate": validate,
        "sft": sft,
        "rgrpo": rgrpo,
        "evaluate": evaluate,
        "promote": promote,
    }
    return flows[command]


def _stages(command: str) -> tuple[str, ...]:
    """The stages that a command goes through, for the numbers on the display."""
    training = ("build_vlir", "validate", "sft", "rgrpo")
    upto = {"build-vlir": training[:1], "validate": training[:2], "sft": training[:3], "rgrpo": training}
    if command == "promote":
        return ("prepare", "promote")
    if command == "evaluate":
        return ("prepare", *progress.STAGES[: progress.STAGES.index("evaluate") + 1], "report")
    return ("prepare", *upto.get(command, progress.STAGES))


@contextmanager
def _display(board: progress.Board) -> Iterator[None]:
    is_terminal = sys.stderr.isatty() and not is_ci()
    with board.live() if is_terminal else nullcontext():
        yield


def _close_pipeline(outcome: "Outcome", seconds: float) -> int:
    from tasks.report import time_lines

    verdict = outcome.verdict
    print(f"\n{outcome.table}\n{time_lines(outcome.stage_times, seconds)}\n")
    aliases = "challenger, champion" if verdict.is_champion else "challenger"
    print(f"registered  vlm-r3 version {verdict.version} ({aliases})")
    print(f"report      {outcome.report}")
    if not verdict.is_champion:
        raise GateError(_refusal(verdict.version, verdict.reasons))
    return 0


def _close_stage(command: str, outcome: Any) -> int:
    if command == "promote":
        if not outcome.is_champion:
            raise GateError(_refusal(outcome.version, outcome.reasons))
        print(f"vlm-r3 version {outcome.version} is champion. " + " ".join(outcome.reasons))
        return 0
    for name, ref in outcome.artifacts.items():
        print(f"{name:12} {ref.uri}")
    for name, value in sorted(outcome.metrics.items()):
        print(f"{name:40} {value:g}")
    return 0


def _analysis_stages(options: argparse.Namespace) -> tuple[str, ...]:
    if options.benchmark:
        return ("prepare", progress.FETCH, "analyse")
    made = ("build_vlir",) if options.model else ("build_vlir", "validate", "sft", "rgrpo")
    controls = ("more_sft", "no_sft") if options.analysis == "table2" and not options.model else ()
    return ("prepare", *made, *controls, "analyse")


def _close_analysis(outcome: "StageOutput", out: Path | None) -> int:
    from tasks.analysis import ANALYSIS, TABLE
    from tasks.stage import read_store

    kept = outcome.artifacts[ANALYSIS]
    folder = read_store().fetch(kept)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in (
            path.name for path in folder.iterdir() if path.suffix in (".csv", ".svg", ".png", ".txt")
        ):
            (out / name).write_bytes((folder / name).read_bytes())
    print(f"\n{(folder / TABLE).read_text(encoding='utf-8')}\n{ANALYSIS:11} {out or kept.uri}")
    return 0


def _close_benchmark(outcome: "StageOutput") -> int:
    from models.evaluation.benchmark_files import TABLE
    from tasks.benchmark import BENCHMARK
    from tasks.stage import read_store

    kept = outcome.artifacts[BENCHMARK]
    print(f"\n{(read_store().fetch(kept) / TABLE).read_text(encoding='utf-8')}\n{BENCHMARK:11} {kept.uri}")
    return 0


def _refusal(version: str, reasons: tuple[str, ...]) -> str:
    return f"Version {version} was not promoted.\n" + "\n".join(f"  {reason}" for reason in reasons)


def _tell(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    pass


def _answer_text(answer: "Answer", model: str, picture: Path) -> str:
    found = f"none ({answer.stop})" if answer.answer is None else answer.answer
    confidence = "" if answer.confidence is None else f" ({100 * answer.confidence:.0f} % sure)"
    looks = f"{len(answer.boxes)} look{'' if len(answer.boxes) == 1 else 's'}"
    return f"\n\nanswer   {found}{confidence}\nmodel    {model}\npicture  {picture} ({looks})"


def _answer_json(answer: "Answer", model: str, picture: Path) -> str:
    return json.dumps({**asdict(answer), "model": model, "picture": str(picture)}, ensure_ascii=False)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def quiet_logs() -> None:
    """Our own warnings on the terminal; what Prefect logs goes to its server."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in ("models", "tasks", "flows"):
        ours = logging.getLogger(name)
        ours.addHandler(handler)
        ours.propagate = False
