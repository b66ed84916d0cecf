"""What a run of a benchmark is asked to do, checked before anything is started."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from models.baselines import Baseline
from models.benchmarks.published import get_published
from models.benchmarks.sets import find_set
from models.config import Preset, Style, resolve_model_path
from models.errors import ConfigError, RecordError, RowCountError
from models.run_config import BenchmarkRun, DirectPrompt


def request_of(
    name: str,
    data: str,
    preset: Preset,
    *,
    split: str = "",
    style: Style,
    allow_partial: bool,
    baseline: Baseline | None = None,
) -> BenchmarkRun:
    """The configuration of the child; an empty split is the benchmark's usual one.

    A ``baseline`` gives its name and how it is asked directly; its settings are already in the preset.

    Raises ConfigError for an unknown benchmark or split, a folder that does not hold the published set, a
    model folder that is none, or an endpoint that is no URL.
    """
    published = get_published(name)
    split = split or next(iter(published.splits))
    folder = Path(data).expanduser().absolute()
    try:
        find_set(published, folder, split, allow_partial=allow_partial)
    except RecordError as error:
        way_out = " (--allow-partial)" if isinstance(error, RowCountError) else ""
        raise ConfigError(f"{error}{way_out}") from error
    is_endpoint = preset.engine.kind == "http"
    if is_endpoint:
        _check_url(preset.engine.endpoint)
    else:
        resolve_model_path(preset.model.path)
    try:
        return BenchmarkRun(
            benchmark=name,
            data_path=str(folder),
            split=split,
            allow_partial=allow_partial,
            style=style,
            model_path="" if is_endpoint else _absolute(preset.model.path),
            model_name="" if baseline is None else baseline.name,
            direct=DirectPrompt() if baseline is None else baseline.direct,
            look=preset.look,
            engine=preset.engine,
            max_unscored_share=preset.evaluation.max_unscored_share,
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
        _check_url(endpoint)
        chosen = {"engine.kind": "http", "engine.endpoint": endpoint, "engine.served_model": served_model}
    else:
        chosen = {"model.path": model} if model else {}
    return [f"{key}={_quoted(value)}" for key, value in chosen.items()]


def baseline_place(baseline: Baseline, *, model: str, endpoint: str, served_model: str) -> list[str]:
    """Where a known model is, as overrides: weights in a folder that we serve, or an endpoint.

    Raises ConfigError when an open model has neither, when a closed one is given weights, or when the folder
    holds another architecture.
    """
    if not baseline.is_open:
        if model:
            raise ConfigError(f"{baseline.name} has no weights to load, so --model {model} cannot be it.")
        endpoint, served_model = endpoint or baseline.endpoint, served_model or baseline.served_model
    elif model and not endpoint:
        baseline.check_folder(model)
    elif not endpoint:
        raise ConfigError(
            f"{baseline.name} needs --model FOLDER with the weights of {baseline.repository}, or --endpoint "
            "URL --served-model NAME where it is served."
        )
    return model_overrides(model=model, endpoint=endpoint, served_model=served_model)


def _check_url(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"Endpoint {endpoint!r} is no URL. Give the base URL with its version, for example "
            "http://127.0.0.1:8000/v1."
        )


def _absolute(path: str) -> str:
    return path if path == "embedded" else str(Path(path).absolute())


def _quoted(text: str) -> str:
    """Text as YAML that reads it back as text, whatever it looks like."""
    return "'" + text.replace("'", "''") + "'"
