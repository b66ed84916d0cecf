"""The task that makes an analysis of the paper in a child process."""

from prefect import task

from models.run_config import AnalysisRun
from tasks.stage import StageOutput, stage_run

_ANALYSIS = "models.analyses.run"
ANALYSIS = "analysis"  # the artifact: data, figure, table
TABLE = "table.txt"


# Not cached: the child itself looks at models and questions, and measures only what is missing.
@task(name="analyse")
async def run_analysis(request: AnalysisRun, label: str = "analyse", parent: str = "") -> StageOutput:
    """CSV, SVG, PNG and table of an analysis; artifact ``analysis``."""
    async with stage_run("analyse", label=label, parent=parent, params=request.model_dump()) as stage:
        num_threads = request.evaluation.num_threads or request.engine.num_threads
        run, result = await stage.child(
            _ANALYSIS, request, inputs=(), num_threads=num_threads, is_repeated=True
        )
        names = list(result.artifacts.values())
        for name in names:
            stage.tracked.log_file(run.path / name)
        return stage.output(run, result, {ANALYSIS: stage.publish(run, names, kind=ANALYSIS)})
