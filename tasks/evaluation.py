"""The task of the stage evaluate: measure all models of a run in one child process."""

import json
from collections.abc import Mapping
from pathlib import Path

from prefect import task

from models.config import EngineConfig, EvaluationConfig, Look
from models.errors import ConfigError
from models.evaluation.evaluate import variant_metrics
from models.evaluation.predictions import read_predictions, rows_table
from models.evaluation.results import Results
from models.evaluation.variants import pipeline_comparisons, pipeline_variants
from models.records import count_questions
from models.run_config import EvaluationRun, EvaluationVariant
from models.rundir import write_atomically
from models.vlir.layout import QUESTIONS
from tasks import tracking
from tasks.artifacts import ArtifactRef
from tasks.caching import cached
from tasks.shown import show_markdown
from tasks.stage import StageOutput, StageRun, stage_run

_EVALUATE = "models.evaluation.run"
FINAL = "rgrpo"  # the row of the model that a pipeline is about
CHAMPION = "champion"
# What the untrained model is: asked directly, which is all it knows.
UNTRAINED = "base_direct"
_MODELS = "models.json"


@task(**cached("evaluate", _EVALUATE))
async def evaluate_models(
    models: dict[str, ArtifactRef],
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

    ``models`` are named by row: base, sft, rgrpo, and where there are such more_sft, no_sft and champion.
    """
    async with stage_run("evaluate", label=label, parent=parent, params=config.model_dump()) as stage:
        paths = {name: str(stage.store.fetch(ref)) for name, ref in models.items()}
        questions = stage.store.fetch(data) / QUESTIONS / "test.parquet"
        config = fitted(config, count_questions(questions))
        variants = _variants(config, paths, with_ablations=with_ablations)
        request = EvaluationRun(
            variants=variants,
            comparisons=_comparisons(variants),
            questions_path=str(questions),
            look=look,
            engine=engine,
            evaluation=config,
            seed=seed,
        )
        run, result = await stage.child(
            _EVALUATE,
            request,
            inputs=(*models.values(), data),
            num_ranks=config.num_ranks,
            num_threads=config.num_threads or engine.num_threads,
        )
        digests = {name: ref.sha256 for name, ref in models.items()}
        write_atomically(run.path / _MODELS, json.dumps(digests, indent=1, sort_keys=True))
        kept = stage.publish(run, [*result.artifacts.values(), _MODELS], kind="evaluation")
        _track(stage, run.path, paths={path: models[name] for name, path in paths.items()}, data=data)
        markdown = (run.path / "table.md").read_text(encoding="utf-8")
        pointer = f"{kept.uri}#{kept.sha256}"
        await show_markdown(f"evaluation {label}", f"{markdown}\nArtifact: `{pointer}`\n", description=label)
        return stage.output(run, result, {"evaluation": kept})


def fitted(config: EvaluationConfig, num_questions: int) -> EvaluationConfig:
    """The configuration for a set that may hold fewer questions than it asks for; every table says how many.

    Raises ConfigError when there is none.
    """
    if not num_questions:
        raise ConfigError(
            "No held-out question was built: the test split is empty. Give more pictures, raise "
            "vlir.test_share, or set the split of some rows to test."
        )
    names = ("num_questions", "num_sampled_questions", "num_ablation_questions")
    return config.model_copy(update={name: min(getattr(config, name), num_questions) for name in names})


def with_champion(models: Mapping[str, ArtifactRef], champion: ArtifactRef | None) -> dict[str, ArtifactRef]:
    """The models to measure: those of a run, and the present champion unless it is one of them."""
    is_among = champion is not None and any(ref.sha256 == champion.sha256 for ref in models.values())
    return dict(models) if champion is None or is_among else {**models, CHAMPION: champion}


def read_results(folder: Path) -> tuple[Results, dict[str, str]]:
    """The results in an artifact of kind ``evaluation``, and the digest of the model of each row."""
    return Results.load(folder / "metrics.json"), json.loads((folder / _MODELS).read_text())


def baseline_row(digests: Mapping[str, str], champion: ArtifactRef | None) -> str | None:
    """The row that the final model must beat: the champion's, or the untrained model's when there is none.

    The champion's may have another name, also that of the final model itself (:func:`with_champion`). None
    when the present champion was not measured.
    """
    if champion is None:
        return UNTRAINED
    return next((name for name, digest in digests.items() if digest == champion.sha256), None)


def _track(stage: StageRun, folder: Path, *, paths: Mapping[str, ArtifactRef], data: ArtifactRef) -> None:
    """What the tracker keeps beside the stream of metrics: table, chart, rows, and numbers linked to models.

    ``paths`` maps the folder of a model to its artifact.
    """
    results = Results.load(folder / "metrics.json")
    stage.tracked.log_params(
        {
            "scorer": results.scorer,
            "scorer_version": results.scorer_version,
            "questions_digest": results.questions_digest,
            "seed": results.seed,
        }
    )
    for name in ("table.md", "table.csv", "chart.html", "metrics.json"):
        stage.tracked.log_file(folder / name)
    predictions = {
        row.name: read_predictions(folder / "predictions" / f"{row.name}.parquet") for row in results.variants
    }
    stage.tracked.log_table(rows_table(predictions), "rows.json")
    for row in results.variants:
        ref = paths[row.model_path]
        measured = tracking.Measured(
            model=row.name,
            model_digest=ref.sha256,
            model_tags={"model_uri": ref.uri},
            data="questions/test",
            data_digest=results.questions_digest,
            data_source=data.uri,
        )
        stage.tracked.log_measured(variant_metrics(row), measured)


def _variants(
    config: EvaluationConfig, paths: Mapping[str, str], *, with_ablations: bool
) -> tuple[EvaluationVariant, ...]:
    usual = {name: path for name, path in paths.items() if name != CHAMPION}
    variants = pipeline_variants(config, **usual, with_ablations=with_ablations)
    if CHAMPION not in paths:
        return variants
    champion = EvaluationVariant(
        name=CHAMPION,
        label="champion",
        model_path=paths[CHAMPION],
        num_questions=config.num_questions,
        num_sampled_questions=min(config.num_sampled_questions, config.num_questions),
    )
    return (*variants, champion)


def _comparisons(variants: tuple[EvaluationVariant, ...]) -> tuple[tuple[str, str], ...]:
    """The usual differences, and that of the final model to everything it may have to beat."""
    usual = pipeline_comparisons(variants)
    beaten = ("base", UNTRAINED, CHAMPION)
    names = {variant.name for variant in variants}
    return usual + tuple((FINAL, old) for old in beaten if old in names and (FINAL, old) not in usual)
