"""Stage evaluate as a child process: ``python -m models.evaluation.run RUN_DIR``.

Reads :class:`models.config.EvaluationRun` and leaves in the run directory ``metrics.json`` (its content is
described in :mod:`models.evaluation.results`), ``predictions/<variant>.parquet``, the table as ``table.txt``,
``table.md`` and ``table.csv``, and ``result.json``.
"""

import sys
from pathlib import Path

from models.child import run_stage
from models.config import EvaluationRun
from models.evaluation import table
from models.evaluation.engines import engines_for
from models.evaluation.evaluate import evaluate, variant_metrics
from models.records import read_questions
from models.rundir import Result, RunDir, write_atomically


def run(directory: RunDir, config: EvaluationRun) -> Result:
    """Measure everything that ``config`` names."""
    results = evaluate(directory, config, read_questions(Path(config.questions_path)), engines_for(config))
    tables = {
        "table.txt": table.to_text(results),
        "table.md": table.to_markdown(results),
        "table.csv": table.to_csv(results),
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
