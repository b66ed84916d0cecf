"""What a run of a benchmark is asked to do, checked before anything is started."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from models.baselines import Baseline
from models.benchmarks.judging import get_judging
from models.benchmarks.published import PublishedSet, get_published
from models.config import Preset, Style
from models.endpoints import check_judge, check_url
from models.errors import ConfigError
from models.evaluation.variants import get_variant
from models.run_config import BenchmarkRun, DirectPrompt
from tasks.benchmark_data import Pinning, check_digest, check_set, fetch_set
from tasks.model_source import FoundModel, check_model, find_model
from tasks.settings import Settings


def check_request(
    name: str,
    data: str,
    preset: Preset,
    *,
    split: str = "",
    style: Style = "look-again",
    variants: Sequence[str] = ("full",),
    allow_partial: bool,
    settings: Settings,
    baseline: Baseline | None = None,
) -> None:
    """Everything that can be told without fetching data or weights.

    Raises ConfigError for an unknown benchmark, split or variant, a place that does not hold the published
    set, a model that there is not or that is not the baseline, an endpoint that is no URL, or a judge where
    none is used.
    """
    published, split = _published(name, split)
    _check_variants(variants, style)
    _check_judge(name, preset)
    check_set(published, data, split, allow_partial=allow_partial)
    if preset.engine.kind == "http":
        check_url(preset.engine.endpoint)
    else:
        check_model(preset.model.path, settings)
        if baseline is not None and Path(preset.model.path).is_dir():
            baseline.check_folder(preset.model.path)


def request_of(
    name: str,
    data: str,
    preset: Preset,
    *,
    split: str = "",
    style: Style,
    variant: str = "full",
    allow_partial: bool,
    settings: Settings,
    pinning: Pinning,
    baseline: Baseline | None = None,
) -> BenchmarkRun:
    """The configuration of the child, its data and its model being on this machine; an empty split is the
    usual.

    A ``baseline`` gives its name and how it is asked directly; its settings are already in the preset.

    Raises as :func:`check_request`, ConfigError also when the data are not those that are pinned, or the
    model is not the baseline.
    """
    published, split = _published(name, split)
    _check_judge(name, preset)
    is_endpoint = preset.engine.kind == "http"
    if is_endpoint:
        check_url(preset.engine.endpoint)
    local = fetch_set(published, data, split, allow_partial=allow_partial, settings=settings)
    check_digest(local, data, pinning)
    model = FoundModel("") if is_endpoint else find_model(preset.model.path, settings)
    if baseline is not None and model.path:
        baseline.check_folder(model.path)
    try:
        return BenchmarkRun(
            benchmark=name,
            data_path=str(local.folder),
            split=split,
            data_digest=local.digest,
            allow_partial=allow_partial,
            style=style,
            variant=variant,
            model_path=model.path,
            model_source=model.source,
            model_name="" if baseline is None else baseline.name,
            direct=DirectPrompt() if baseline is None else baseline.direct,
            look=get_variant(variant).look(preset.look),
            # Threads, as processes, are the launcher's: they do not change what was asked already.
            engine=preset.engine.model_copy(update={"num_threads": 0}),
            max_unscored_share=preset.evaluation.max_unscored_share,
            report=preset.report,
            judge=preset.judge,
            seed=preset.seed,
        )
    except ValidationError as error:
        raise ConfigError(f"Benchmark {name!r} cannot be run so: {error}") from error


def model_overrides(*, model: str, endpoint: str, served_model: str) -> list[str]:
    """The command line's choice of who answers as overrides of the preset; none keeps the preset's model.

    Raises ConfigError for two answers, or for half of an endpoint.
    """
    if model and (endpoint or served_model):
        raise ConfigError(
            f"--model {model} and --endpoint {endpoint or served_model} both say who answers. Give one."
        )
    if bool(endpoint) != bool(served_model):
        found, missing = ("--endpoint", "--served-model") if endpoint else ("--served-model", "--endpoint")
        raise ConfigError(
            f"{found} {endpoint or served_model} needs {missing}: an endpoint is a base URL and the name of "
            "a model that it serves."
        )
    if endpoint:
        check_url(endpoint)
        chosen = {"engine.kind": "http", "engine.endpoint": endpoint, "engine.served_model": served_model}
    else:
        chosen = {"model.path": model} if model else {}
    return [f"{key}={_quoted(value)}" for key, value in chosen.items()]


def baseline_place(baseline: Baseline, *, model: str, endpoint: str, served_model: str) -> list[str]:
    """Where a known model is, as overrides: weights in a folder that we serve, or an endpoint.

    Raises ConfigError when an open model has neither, or when a closed one is given weights.
    """
    if not baseline.is_open:
        if model:
            raise ConfigError(f"{baseline.name} has no weights to load, so --model {model} cannot be it.")
        endpoint, served_model = endpoint or baseline.endpoint, served_model or baseline.served_model
    elif not model and not endpoint:
        raise ConfigError(
            f"{baseline.name} needs --model FOLDER with the weights of {baseline.repository}, or --endpoint "
            "URL --served-model NAME where it is served."
        )
    return model_overrides(model=model, endpoint=endpoint, served_model=served_model)


def judge_overrides(*, endpoint: str, model: str) -> list[str]:
    """The command line's choice of a judge as overrides of the preset; none keeps the preset's judge.

    Raises ConfigError for half of a choice.
    """
    check_judge(endpoint=endpoint, model=model)
    chosen = {"judge.endpoint": endpoint, "judge.served_model": model} if endpoint else {}
    return [f"{key}={_quoted(value)}" for key, value in chosen.items()]


def _published(name: str, split: str) -> tuple[PublishedSet, str]:
    """The benchmark, and the split that is meant."""
    published = get_published(name)
    return published, split or next(iter(published.splits))


def _check_variants(variants: Sequence[str], style: Style) -> None:
    """Raises ConfigError for an unknown variant, or one of a direct answer, which asks for no crops."""
    for variant in map(get_variant, variants):
        if style == "direct" and variant.name != "full":
            raise ConfigError(
                f"--variant {variant.name} answers crop commands, and --style direct has none. Leave one out."
            )


def _check_judge(name: str, preset: Preset) -> None:
    if preset.judge.is_used:
        get_judging(name)
        check_url(preset.judge.endpoint)


def _quoted(text: str) -> str:
    """Text as YAML that reads it back as text, whatever it looks like."""
    return "'" + text.replace("'", "''") + "'"
