"""The task that runs a published benchmark in child processes."""

import hashlib
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from prefect import task

from models.config import resolve_model_path
from models.evaluation.benchmark_comparison import compare_with
from models.evaluation.benchmark_files import RESULTS, ROWS, TABLE, rows_table
from models.evaluation.benchmark_report import MODEL, PAGE, write_page
from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.benchmark_rows import read_asked
from models.evaluation.table import estimate
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from tasks import tracking
from tasks.artifacts import ArtifactRef, digest_of
from tasks.benchmark_runs import WEIGHTS
from tasks.earlier_runs import KIND, check_comparable, find_run
from tasks.publication import publish_page
from tasks.shown import show_table
from tasks.stage import StageOutput, StageRun, stage_run
from tasks.vllm_server import model_server

_BENCHMARK = "models.evaluation.benchmark"
BENCHMARK = KIND  # the artifact: predictions, metrics, table, chart


def _answering(run: RunDir, request: BenchmarkRun, *, num_threads: int) -> AbstractAsyncContextManager[None]:
    """The server that answers, where one has to be started for the run."""
    engine = request.engine.model_copy(update={"num_threads": num_threads})
    if engine.kind != "vllm-server":
        return nullcontext()
    return model_server(run, request.model_path, engine, look=request.look, seed=request.seed)


# Not cached: the child itself looks at the set and the model, and asks only the rows that are missing.
@task(name="benchmark")
async def run_benchmark(
    request: BenchmarkRun,
    name: str = "",
    against: str = "",
    num_ranks: int = 1,
    num_threads: int = 0,
    label: str = "benchmark",
    parent: str = "",
) -> StageOutput:
    """Every row of a set asked and scored, by ``num_ranks`` processes; artifact ``benchmark``.

    ``name`` is what the tracked run is called, ``against`` names an earlier run to compare with. How many
    processes and threads there are does not change which rows were asked already.
    """
    title = name or title_of(request)
    async with stage_run(
        "benchmark", label=label, name=title, parent=parent, params=request.model_dump()
    ) as stage:
        other = find_run(against, stage.settings) if against else None
        if other is not None:
            check_comparable(request, other, against)
        # Another judge reads the same answers: the model is not asked again.
        named_by = request.without_judge
        config = request.model_copy(update={"verdicts_path": str(stage.settings.verdicts)})
        run = await stage.directory(_BENCHMARK, config, (), named_by=named_by)
        async with _answering(run, request, num_threads=num_threads):
            _, result = await stage.child(
                _BENCHMARK,
                config,
                inputs=(),
                num_ranks=num_ranks,
                num_threads=num_threads,
                is_repeated=True,
                named_by=named_by,
            )
        results = BenchmarkResults.load(run.path / RESULTS)
        if other is not None:
            results = compare_with(run.path, other, name=against)
        result = result.model_copy(update={"metrics": dict(results.numbers())})
        write_page(run.path, request, other)
        names = [*result.artifacts.values(), PAGE]
        kept = stage.publish(run, names, kind=BENCHMARK)
        for each in names:
            stage.tracked.log_file(run.path / each)
        _track(stage, request, results, run.path)
        answerer, digest = _answerer(request)
        await publish_page(
            run.path / PAGE,
            stage.tracked.id,
            num=request.report.num_traces,
            tags={"benchmark": request.benchmark, "model": answerer},
            models={MODEL: digest},
        )
        await show_table(f"benchmark {title}", _facts(results, kept), description=_described(run.path, title))
        return stage.output(run, result, {BENCHMARK: kept})


def title_of(request: BenchmarkRun) -> str:
    """What a run is called unless somebody names it: benchmark, style, variant, and who answers."""
    served = request.model_name or request.engine.served_model
    model = served or request.model_source or Path(request.model_path).name
    variant = "" if request.variant == "full" else f" {request.variant}"
    return f"{request.benchmark} {request.style}{variant} {model}"


def _answerer(request: BenchmarkRun) -> tuple[str, str]:
    """Name and digest of who answers; that of an endpoint is made of its address and its model's name."""
    if request.model_path:
        name = request.model_source or Path(request.model_path).name
        return name, digest_of(resolve_model_path(request.model_path))
    served = request.engine.served_model
    return served, hashlib.sha256(f"{request.engine.endpoint} {served}".encode()).hexdigest()


def _track(stage: StageRun, request: BenchmarkRun, results: BenchmarkResults, folder: Path) -> None:
    """What the tracker keeps beside the stream of metrics: facts, rows, and numbers linked to the model."""
    name, digest = _answerer(request)
    stage.tracked.log_params(
        {
            WEIGHTS: digest,
            "scorer": results.scorer,
            "scorer_version": results.scorer_version,
            "model_digest": results.model.digest or "",
            "set_digest": results.data.digest,
            "num_rows": results.num_rows,
        }
    )
    stage.tracked.log_table(rows_table(results, read_asked(folder / ROWS)), "rows.json")
    measured = tracking.Measured(
        model=name,
        model_digest=digest,
        model_tags={"model_path": request.model_path, "endpoint": request.engine.endpoint},
        data=f"{results.data.benchmark}/{results.data.split}",
        data_digest=results.data.digest,
        data_source=request.data_path,
    )
    stage.tracked.log_measured(results.numbers(), measured)


def _facts(results: BenchmarkResults, kept: ArtifactRef) -> list[dict[str, object]]:
    """The rows of Prefect's table: counts, headline, difference, parts, and where everything is."""
    facts: dict[str, object] = {
        "rows": f"{results.num_scored} scored, {results.num_failed} failed, {results.num_unasked} not asked",
        f"{results.headline_field}, %": estimate(results.headline),
        **{
            f"{results.headline_field} of {name}, %": estimate(part.headline)
            for name, part in results.categories.items()
            if part.headline is not None
        },
        "crops per question": results.crops_per_question,
        "tokens per question": results.tokens_per_question,
        "seconds per question": results.seconds_per_question,
        "cut off": results.truncation_rate,
        "protocol errors": results.protocol_error_rate,
        "scorer": f"{results.scorer} version {results.scorer_version}",
        "data": results.data.digest,
        "model": results.model.digest or results.model.served_model,
        "seed": results.seed,
        "artifact": f"{kept.uri}#{kept.sha256}",
    }
    if results.comparison is not None:
        found = results.comparison
        facts[f"difference to {found.against.name}, points"] = (
            f"{estimate(found.difference)} over {found.num_rows} rows, {found.num_left_out} left out"
        )
    return [{"what": name, "value": value} for name, value in facts.items()]


def _described(folder: Path, title: str) -> str:
    return f"## {title}\n\n```\n{(folder / TABLE).read_text(encoding='utf-8')}```\n"
