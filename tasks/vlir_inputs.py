"""What a build reads, brought to this machine: sources, evaluation sets, and the teacher's model."""

import hashlib
from pathlib import Path

from models.benchmarks.published import get_published
from models.config import Preset, QuestionMix, TeacherConfig, VLIRConfig
from models.endpoints import check_url
from models.errors import ConfigError
from models.run_config import VLIRRun
from models.vlir.layout import MANIFEST
from tasks.artifacts import store_of
from tasks.benchmark_data import local_folder
from tasks.model_source import check_model, find_artifact, find_model
from tasks.progress import FETCH, board, show_megabytes
from tasks.settings import Settings
from tasks.source_files import check_source, local_source, source_files
from tasks.uris import S3_SCHEME

_REGISTERED = "models:/"


def check_inputs(config: VLIRConfig, settings: Settings) -> None:
    """Raises ConfigError or RecordError for sources, sets or a teacher that cannot be used."""
    for source in config.sources:
        if source.kind != "tiny":
            check_source(source, max_picture_bytes=config.max_picture_bytes)
    for name, place in config.held_out.items():
        get_published(name)
        _check_place(name, place)
    if config.earlier and not _is_artifact(config.earlier):
        _earlier_folder(config.earlier)
    if config.teacher.kind == "vllm":
        check_model(config.teacher.model, settings)
    if config.teacher.engine is not None and config.teacher.kind == "http":
        check_url(config.teacher.engine.endpoint)


def build_request(preset: Preset, settings: Settings) -> VLIRRun:
    """What the build's process is asked for: everything it reads is local, and known by a digest.

    Raises as :func:`check_inputs`.
    """
    config = preset.vlir
    local = with_local_sources(config, settings).model_copy(
        update={
            "held_out": {name: _local_set(name, place, settings) for name, place in config.held_out.items()},
            "teacher": _local_teacher(config.teacher, settings),
            "earlier": _local_earlier(config.earlier, settings),
        }
    )
    return VLIRRun(
        vlir=local,
        look=preset.look,
        engine=preset.engine,
        seed=preset.seed,
        # Only what shapes the data: another learning rate must not draw other questions.
        rgrpo_questions=QuestionMix(
            num_questions=preset.rgrpo.num_steps * preset.rgrpo.questions_per_step, kinds=preset.rgrpo.kinds
        ),
        evaluation_questions=QuestionMix(
            num_questions=preset.evaluation.num_questions, kinds=preset.evaluation.kinds
        ),
        sources_digest=_files_digest(local),
    )


def with_local_sources(config: VLIRConfig, settings: Settings) -> VLIRConfig:
    """The configuration with what its sources read on this machine, fetched now or before."""
    sources = (
        source if source.kind == "tiny" else local_source(source, settings) for source in config.sources
    )
    return config.model_copy(update={"sources": tuple(sources)})


def _check_place(name: str, place: str) -> None:
    if not place.startswith(S3_SCHEME) and not local_folder(place).is_dir():
        raise ConfigError(
            f"vlir.held_out: {name} is said to lie in {place!r}, which is no folder. Give the folder of its "
            "Parquet files, or its s3:// prefix."
        )


def _local_set(name: str, place: str, settings: Settings) -> str:
    _check_place(name, place)
    if not place.startswith(S3_SCHEME):
        return str(local_folder(place))
    from tasks.s3_mirror import RemoteFolder

    remote = RemoteFolder(place)
    with board().stage(FETCH):
        return str(remote.mirror(remote.names(), settings, show_megabytes))


def _local_teacher(config: TeacherConfig, settings: Settings) -> TeacherConfig:
    """The teacher with a local model, its name as it was given, and its prompts decided."""
    prompts = config.prompts
    if prompts == "auto":
        prompts = "look-again" if config.kind != "http" and _was_trained_here(config.model) else "paper"
    if config.kind != "vllm":
        return config.model_copy(update={"prompts": prompts})
    found = find_model(config.model, settings)
    name = config.name or found.source or config.model
    return config.model_copy(update={"model": found.path, "name": name, "prompts": prompts})


def _local_earlier(place: str, settings: Settings) -> str:
    """The folder of an earlier set; one that is an artifact is fetched and checked."""
    if not place:
        return ""
    if not _is_artifact(place):
        return str(_earlier_folder(place))
    found = find_artifact(place, settings)
    return str(store_of(found.uri, settings).fetch(found))


def _is_artifact(place: str) -> bool:
    return place.startswith((S3_SCHEME, "file://"))


def _earlier_folder(place: str) -> Path:
    folder = local_folder(place)
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"vlir.earlier: {place!r} holds no {MANIFEST}. Give the folder that build_vlir made, or the URI "
            "of its artifact (with #DIGEST to have it checked)."
        )
    return folder


def _was_trained_here(model: str) -> bool:
    return model.startswith(_REGISTERED) or model == "embedded"


def _files_digest(config: VLIRConfig) -> str:
    """Of the files of all sources as they lie there: where none changed, an earlier build is good."""
    digest = hashlib.sha256()
    for source in config.sources:
        for file in source_files(source):
            digest.update(_stat_line(file))
    for place in config.held_out.values():
        for file in sorted(Path(place).rglob("*.parquet")):
            digest.update(_stat_line(file))
    if config.earlier:
        digest.update((Path(config.earlier) / MANIFEST).read_bytes())
    is_free = config.is_drawn and not config.held_out and not config.earlier
    return "" if is_free else digest.hexdigest()


def _stat_line(file: Path) -> bytes:
    """Name, size and time of the last change."""
    found = file.stat() if file.exists() else None
    return f"{file} {found.st_size} {found.st_mtime_ns}\n".encode() if found else f"{file} -\n".encode()
