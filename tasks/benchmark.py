"""The task that runs a published benchmark in a child process."""

from prefect import task

from models.evaluation.benchmark_report import PAGE
from models.run_config import BenchmarkRun
from tasks.publication import publish_page
from tasks.stage import StageOutput, stage_run

_BENCHMARK = "models.evaluation.benchmark"
BENCHMARK = "benchmark"  # the artifact: predictions, metrics, table
TABLE = "table.txt"


# Not cached: the child itself looks at the set and the model, and asks only the rows that are missing.
@task(name="benchmark")
async def run_benchmark(request: BenchmarkRun, label: str = "benchmark", parent: str = "") -> StageOutput:
    """Every row of a set asked and scored; artifact ``benchmark``."""
    async with stage_run("benchmark", label=label, parent=parent, params=request.model_dump()) as stage:
        run, result = await stage.child(
            _BENCHMARK, request, inputs=(), num_threads=request.engine.num_threads, is_repeated=True
        )
        names = list(result.artifacts.values())
        for name in names:
            stage.tracked.log_file(run.path / name)
        await publish_page(
            run.path / PAGE,
            stage.tracked.id,
            num_traces=request.report.num_traces,
            tags={"benchmark": request.benchmark},
        )
        return stage.output(run, result, {BENCHMARK: stage.publish(run, names, kind=BENCHMARK)})
