"""The task that runs a published benchmark in a child process."""

from prefect import task

from models.run_config import BenchmarkRun
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
            _BENCHMARK,
            request.model_copy(update={"verdicts_path": str(stage.settings.verdicts)}),
            inputs=(),
            num_threads=request.engine.num_threads,
            is_repeated=True,
            # Another judge reads the same answers: the model is not asked again.
            named_by=request.without_judge,
        )
        names = list(result.artifacts.values())
        for name in names:
            stage.tracked.log_file(run.path / name)
        return stage.output(run, result, {BENCHMARK: stage.publish(run, names, kind=BENCHMARK)})
