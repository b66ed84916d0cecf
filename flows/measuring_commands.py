"""The commands that measure: ``evaluate --benchmark``, ``analyse`` and ``table``."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console import Start, conduct, say
from models.baselines import Baseline, get_baseline, read_baselines
from models.errors import ConfigError
from models.presets import DEFAULT_PRESET, load_preset
from tasks import progress
from tasks.analysis_request import check_analysis
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import baseline_place, check_request, judge_overrides, model_overrides
from tasks.earlier_runs import check_named
from tasks.endpoint_models import only_model
from tasks.settings import prepare

if TYPE_CHECKING:
    from tasks.stage import StageOutput


def run_benchmark(options: argparse.Namespace) -> int:
    """Run a published benchmark on a model or an endpoint and print its table."""
    baseline = get_baseline(options.baseline) if options.baseline else None
    preset, overrides = _who_answers(options, baseline)
    overrides += judge_overrides(endpoint=options.judge_endpoint, model=options.judge_model)
    settings = prepare(options.work_dir, refresh=options.refresh)
    data = options.data or settings.benchmark_folder(options.benchmark)
    lock = options.lock.absolute() if options.lock else settings.benchmark_lock
    Pinning(lock, demanded=options.data_digest, accepted=options.accept_data_digest)
    style = options.style or ("look-again" if baseline is None else "direct")
    variants = (options.variant or "full").split(",")
    choice = {"split": options.split, "style": style, "allow_partial": options.allow_partial}
    check_request(
        options.benchmark,
        data,
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

    def load() -> Start:
        from flows.benchmark import benchmark

        async def start() -> None:
            for variant in variants:
                asked = (options.benchmark, data, preset, overrides)
                _close_benchmark(await benchmark(*asked, variant=variant, **choice))

        return start

    conduct(settings, ("prepare", progress.FETCH, "benchmark"), load)
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

    def load() -> Start:
        from flows.analyse import analyse as make

        return partial(
            make,
            options.analysis,
            options.preset,
            overrides,
            models,
            sets,
            allow_partial=options.allow_partial,
            num_questions=options.questions,
        )

    return _close_analysis(conduct(settings, _analysis_stages(options), load), options.out)


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
        say("Nothing was measured yet: vlm-r3 evaluate --benchmark NAME --data FOLDER; or name --runs.")
    return 0


def _who_answers(options: argparse.Namespace, baseline: Baseline | None) -> tuple[str, list[str]]:
    """The preset and its overrides: a known model's settings, then ``--set``, then where the model is."""
    served = options.served_model
    if options.endpoint and not (served or options.model or baseline):
        served = only_model(options.endpoint)
    where = {"model": options.model, "endpoint": options.endpoint, "served_model": served}
    if baseline is None:
        return options.preset or DEFAULT_PRESET, [*options.overrides, *model_overrides(**where)]
    place = baseline_place(baseline, **where)
    return options.preset or baseline.preset, [*baseline.overrides(), *options.overrides, *place]


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
