"""The task that runs a published benchmark in a child process."""

from contextlib import AbstractAsyncContextManager, nullcontext

from prefect import task

from models.run_config import BenchmarkRun
from models.rundir import RunDir
from tasks.stage import StageOutput, stage_run
from tasks.vllm_server import model_server

_BENCHMARK = "models.evaluation.benchmark"
BENCHMARK = "benchmark"  # the artifact: predictions, metrics, table
TABLE = "table.txt"


def _answering(run: RunDir, request: BenchmarkRun) -> AbstractAsyncContextManager[None]:
    """The server that answers, where one has to be started for the run."""
    engine = request.engine
    if engine.kind != "vllm-server":
        return nullcontext()
    return model_server(run, request.model_path, engine, look=request.look, seed=request.seed)


# Not cached: the child itself looks at the set and the model, and asks only the rows that are missing.
@task(name="benchmark")
async def run_benchmark(request: BenchmarkRun, label: str = "benchmark", parent: str = "") -> StageOutput:
    """Every row of a set asked and scored; artifact ``benchmark``."""
    async with stage_run("benchmark", label=label, parent=parent, params=request.model_dump()) as stage:
        # Another judge reads the same answers: the model is not asked again.
        named_by = request.without_judge
        request = request.model_copy(update={"verdicts_path": str(stage.settings.verdicts)})
        run = stage.directory(_BENCHMARK, request, (), named_by=named_by)
        async with _answering(run, request):
            _, result = await stage.child(
                _BENCHMARK,
                request,
                inputs=(),
                num_threads=request.engine.num_threads,
                is_repeated=True,
                named_by=named_by,
            )
        names = list(result.artifacts.values())
        for name in names:
            stage.tracked.log_file(run.path / name)
        return stage.output(run, result, {BENCHMARK: stage.publish(run, names, kind=BENCHMARK)})
