"""An analysis of the paper as a child process.

    python -m models.analyses.run RUN_DIR

Reads :class:`models.run_config.AnalysisRun` and leaves in the run directory the data (``NAME.csv``), the
figure (``NAME.svg``, ``NAME.png``) and a table for a terminal (``table.txt``). Measurements are kept under
``measured/``, so that an interrupted analysis goes on where it stopped.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from models.analyses import figure4, figure5, plots, table2
from models.analyses.measuring import Lender, chosen_questions, sources
from models.child import run_stage
from models.config import resolve_model_path
from models.errors import ConfigError
from models.evaluation.benchmark import engine_config
from models.evaluation.engines import checkpoint_engines
from models.evaluation.switch import Engines, EngineSwitch
from models.policy import load_policy
from models.run_config import AnalysisRun
from models.rundir import Result, RunDir, write_atomically

TABLE = "table.txt"


def run(directory: RunDir, config: AnalysisRun) -> Result:
    """Make the analysis that ``config`` names."""
    files = _ANALYSES[config.analysis](directory, config)
    return Result(status="done", artifacts={name: name for name in (*files, TABLE)})


def run_table2(directory: RunDir, config: AnalysisRun) -> list[str]:
    """The ablations; names of the files made."""
    wanted = table2.askings(config)
    with lent_engines(config) as engines:
        rows = [
            row
            for source in sources(directory, config, engines)
            for row in table2.measure(source, wanted, seed=config.seed)
        ]
    _write(directory, {"table2.csv": table2.to_csv(rows), TABLE: table2.to_text(rows)})
    return ["table2.csv", *plots.save_table2(rows, directory.path)]


def run_figure4(directory: RunDir, config: AnalysisRun) -> list[str]:
    """Accuracy against grounding accuracy; names of the files made."""
    with lent_engines(config) as engines:
        points = [
            point
            for source in sources(directory, config, engines)
            for point in figure4.measure(source, config.model_path, levels=config.levels, ways=config.ways)
        ]
    _write(directory, {"figure4.csv": figure4.to_csv(points), TABLE: figure4.to_text(points)})
    return ["figure4.csv", *plots.save_figure4(points, directory.path)]


def run_figure5(directory: RunDir, config: AnalysisRun) -> list[str]:
    """Attention along the answer; names of the files made."""
    if not config.model_path:
        raise ConfigError("An endpoint shows no attention. Give the model's folder: --model.")
    model = resolve_model_path(config.model_path)
    with lent_engines(config) as engines:
        assert engines is not None, "there is a model folder"
        trajectories = figure5.roll_out(engines.open(model), *chosen_questions(config))
    policy = load_policy(model, dtype=config.engine.dtype).to(_device()).eval()
    chains = list(figure5.measure(policy, trajectories))
    points = figure5.curves(chains, seed=config.seed)
    texts = {
        "figure5.csv": figure5.curves_csv(points),
        "figure5_tokens.csv": figure5.tokens_csv(chains),
        TABLE: figure5.to_text(points),
    }
    _write(directory, texts)
    return ["figure5.csv", "figure5_tokens.csv", *plots.save_figure5(points, directory.path)]


@contextmanager
def lent_engines(config: AnalysisRun) -> Iterator[Engines | None]:
    """One engine for everything in the block, whichever model is measured; None when an endpoint answers."""
    if not config.model_path:
        yield None
        return
    wanted = [config.engine, *map(engine_config, config.benchmarks)]
    engine = max(wanted, key=lambda one: one.max_images)
    switch = EngineSwitch(checkpoint_engines(engine, look=config.look, seed=config.seed))
    try:
        yield Lender(switch)
    finally:
        switch.close()


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _write(directory: RunDir, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        write_atomically(directory.path / name, text)


_ANALYSES: Mapping[str, Callable[[RunDir, AnalysisRun], list[str]]] = {
    "table2": run_table2,
    "figure4": run_figure4,
    "figure5": run_figure5,
}

if __name__ == "__main__":
    sys.exit(run_stage(run, AnalysisRun, sys.argv[1:]))
