"""The options that name one's own data and teacher, as overrides of a preset."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.config import Preset
from models.endpoints import check_url
from models.errors import ConfigError, RecordError
from models.presets import load_preset
from tasks.endpoint_models import is_vllm, only_model
from tasks.settings import Settings
from tasks.uris import S3_SCHEME

NONE = "none"


def data_overrides(options: argparse.Namespace, preset: str, overrides: Sequence[str]) -> list[str]:
    """What --manifest, --teacher and --judge say, before ``overrides``, which may say otherwise.

    A teacher at an endpoint judges, too, unless another judge is named. Raises ConfigError for half of what
    is needed, and where an endpoint does not answer.
    """
    if not hasattr(options, "manifest"):
        return list(overrides)
    _check(options)
    chosen: dict[str, Any] = {}
    if options.manifest:
        source = {"kind": "manifest", "data": _place(options.manifest), "licence": options.licence}
        chosen["sources"] = [source]
    if options.teacher:
        # The engine's settings are the preset's, whatever else is overridden.
        engine = load_preset(preset, [each for each in overrides if each.startswith("engine.")]).engine
        chosen["teacher"] = _teacher(options, engine.model_dump(mode="json"))
    judge = options.judge or (options.teacher if _is_url(options.teacher) else "")
    if judge:
        found = _judge(options, judge)
        chosen |= {"semantic_unit": found, "coherence": found}
    return [*(f"vlir.{name}={json.dumps(value)}" for name, value in chosen.items()), *overrides]


def check_data(preset: Preset, settings: Settings) -> None:
    """Raises ConfigError for sources or a teacher that are not there; fetches little."""
    if preset.vlir.is_drawn and preset.vlir.teacher.kind == "drawn-world":
        return
    from tasks.vlir_inputs import check_inputs

    try:
        check_inputs(preset.vlir, settings)
    except RecordError as error:
        raise ConfigError(str(error)) from error


def _check(options: argparse.Namespace) -> None:
    if options.manifest and not options.teacher:
        raise ConfigError(
            f"--manifest {options.manifest} needs --teacher: an OpenAI-compatible endpoint, or a model "
            "(a folder, models:/vlm-r3@champion, s3://...)."
        )
    if options.manifest and not _is_url(options.teacher) and not options.judge:
        raise ConfigError(
            f"--teacher {options.teacher} is no endpoint, so somebody else must judge its rationales: add "
            "--judge URL, or --judge none to filter by rules alone."
        )
    if options.licence and not options.manifest:
        raise ConfigError(f"--licence {options.licence!r} is a note about a manifest: give --manifest, too.")
    for name, owner in (("teacher_model", "teacher"), ("judge_model", "judge")):
        if getattr(options, name) and not _is_url(getattr(options, owner)):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} names a model at an endpoint: give --{owner} URL, too.")


def _teacher(options: argparse.Namespace, engine: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_url(options.teacher):
        return {"kind": "vllm", "model": _local(options.teacher)}
    check_url(options.teacher)
    place = {
        "kind": "http",
        "endpoint": options.teacher,
        "served_model": options.teacher_model or only_model(options.teacher, option="--teacher-model"),
        # Only vLLM's server can go on with a reply after a crop; others get the crop as a message.
        "continuation": "assistant" if is_vllm(options.teacher) else "user_turn",
        "max_num_seqs": options.connections,
    }
    return {"kind": "http", "engine": {**engine, **place}}


def _judge(options: argparse.Namespace, judge: str) -> dict[str, Any]:
    if judge == NONE:
        return {"kind": NONE}
    check_url(judge)
    is_teacher = judge == options.teacher
    named = options.judge_model or (options.teacher_model if is_teacher else "")
    return {
        "kind": "http",
        "endpoint": judge,
        "served_model": named or only_model(judge, option="--judge-model"),
        "num_connections": options.connections,
    }


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _place(path: str) -> str:
    return path if path.startswith(S3_SCHEME) else str(Path(path).expanduser().absolute())


def _local(model: str) -> str:
    """A folder by its whole path; any other name as it is."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model
