"""The task of the stage evaluate: measure all models of a run in one child process."""

import json
from collections.abc import Mapping
from pathlib import Path

from prefect import task

from models.config import EngineConfig, EvaluationConfig, EvaluationRun, EvaluationVariant, Look
from models.evaluation.results import Results
from models.evaluation.variants import pipeline_comparisons, pipeline_variants
from models.rundir import write_atomically
from models.vlir.build import QUESTIONS
from tasks.artifacts import ArtifactRef
from tasks.caching import cached
from tasks.stage import StageOutput, stage_run

_EVALUATE = "models.evaluation.run"
FINAL = "rgrpo"  # the row of the model that a pipeline is about
CHAMPION = "champion"
# What the untrained model is: asked directly, which is all it knows.
UNTRAINED = "base_direct"
_ROWS = "rows.json"


@task(**cached("evaluate", _EVALUATE))
async def evaluate_models(
    models: dict[str, ArtifactRef],
    champion: ArtifactRef | None,
    data: ArtifactRef,
    config: EvaluationConfig,
    engine: EngineConfig,
    look: Look,
    seed: int,
    with_ablations: bool,
    label: str = "evaluate",
    parent: str = "",
) -> StageOutput:
    """Results of all rows; artifact ``evaluation``.

    ``models`` are named by row: base, sft, rgrpo, and where they were made more_sft and no_sft. The champion
    gets a row of its own unless it is one of them.
    """
    async with stage_run("evaluate", label=label, parent=parent, params=config.model_dump()) as stage:
        paths = {name: str(stage.store.fetch(ref)) for name, ref in models.items()}
        variants = pipeline_variants(config, **paths, with_ablations=with_ablations)
        digests = {variant.name: _digest_of(variant, paths, models) for variant in variants}
        if champion is not None and champion.sha256 not in digests.values():
            path = str(stage.store.fetch(champion))
            variants = (*variants, _champion_row(config, path))
            digests[CHAMPION] = champion.sha256
        request = EvaluationRun(
            variants=variants,
            comparisons=_comparisons(variants, baseline_row(digests, champion)),
            questions_path=str(stage.store.fetch(data) / QUESTIONS / "test.parquet"),
            look=look,
            engine=engine,
            evaluation=config,
            seed=seed,
        )
        run, result = await stage.child(
            _EVALUATE, request, inputs=(*models.values(), data), num_threads=engine.num_threads
        )
        write_atomically(run.path / _ROWS, json.dumps(digests, indent=1, sort_keys=True))
        kept = stage.publish(run, [*result.artifacts.values(), _ROWS], kind="evaluation")
        return stage.output(run, result, {"evaluation": kept})


def read_results(folder: Path) -> tuple[Results, dict[str, str]]:
    """The results in an artifact of kind ``evaluation``, and the digest of each row's model."""
    return Results.load(folder / "metrics.json"), json.loads((folder / _ROWS).read_text())


def baseline_row(digests: Mapping[str, str], champion: ArtifactRef | None) -> str | None:
    """The row that the final model must beat: the champion's, or the untrained model's when there is none.

    None when the present champion was not measured.
    """
    if champion is None:
        return UNTRAINED
    measured = [name for name, digest in digests.items() if digest == champion.sha256 and name in _WHOLE_ROWS]
    return measured[0] if measured else None


# Rows that show a model as it would be used, not an ablation.
_WHOLE_ROWS = ("base", "sft", "more_sft", FINAL, "no_sft", CHAMPION)


def _digest_of(
    variant: EvaluationVariant, paths: Mapping[str, str], models: Mapping[str, ArtifactRef]
) -> str:
    return next(models[name].sha256 for name, path in paths.items() if path == variant.model_path)


def _champion_row(config: EvaluationConfig, path: str) -> EvaluationVariant:
    return EvaluationVariant(
        name=CHAMPION,
        label="champion",
        model_path=path,
        num_questions=config.num_questions,
        num_sampled_questions=min(config.num_sampled_questions, config.num_questions),
    )


def _comparisons(
    variants: tuple[EvaluationVariant, ...], baseline: str | None
) -> tuple[tuple[str, str], ...]:
    usual = pipeline_comparisons(variants)
    if baseline is None or baseline == FINAL or (FINAL, baseline) in usual:
        return usual
    return (*usual, (FINAL, baseline))
