"""Stage evaluate as a child process.

    python -m models.evaluation.run RUN_DIR
    torchrun --nproc-per-node N -m models.evaluation.run RUN_DIR

Reads :class:`models.run_config.EvaluationRun` and leaves in the run directory ``metrics.json`` (content
:mod:`models.evaluation.results`), ``predictions/<variant>.parquet``, the table as ``table.txt``,
``table.md`` and ``table.csv``, ``chart.html``, and ``result.json``.
"""

import sys
from pathlib import Path

from models.child import run_stage
from models.evaluation import table
from models.evaluation.charts_page import evaluation_page
from models.evaluation.engines import engines_for
from models.evaluation.evaluate import evaluate, variant_metrics
from models.evaluation.ranks import take_device, this_share
from models.records import read_questions
from models.run_config import EvaluationRun
from models.rundir import Result, RunDir, write_atomically


def run(directory: RunDir, config: EvaluationRun) -> Result:
    """Measure everything that ``config`` names, or this rank's share of it."""
    share = this_share()
    take_device()
    questions = read_questions(Path(config.questions_path))
    results = evaluate(directory, config, questions, engines_for(config), share=share)
    if results is None:
        return Result(status="done", reason=f"rank {share.rank} measured its share")
    tables = {
        "table.txt": table.to_text(results),
        "table.md": table.to_markdown(results),
        "table.csv": table.to_csv(results),
        "chart.html": evaluation_page(results),
    }
    for name, text in tables.items():
        write_atomically(directory.path / name, text)
    return Result(
        status="done",
        artifacts={
            "metrics": "metrics.json",
            "predictions": "predictions",
            **{name: name for name in tables},
        },
        metrics={name: value for row in results.variants for name, value in variant_metrics(row).items()},
    )


if __name__ == "__main__":
    sys.exit(run_stage(run, EvaluationRun, sys.argv[1:]))
