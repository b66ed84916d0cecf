"""The teacher and the judges that a configuration names. Engines are imported only where one is used."""

import os
from collections.abc import Mapping

from models.base_config import resolve_model_path
from models.config import Look, TeacherConfig
from models.engine import Engine
from models.run_config import VLIRRun
from models.tiny.teacher import EmbeddedTeacher
from models.tiny.world import Scene, WorldQuestion
from models.vlir.generate import Teacher

EMBEDDED_NAME = "embedded"
# Questions that the drawn world's author is asked together; it answers at once.
_NUM_DRAWN = 128


def teacher_name(config: TeacherConfig) -> str:
    """Who wrote a record, for the record."""
    if config.kind == "drawn-world":
        return EMBEDDED_NAME
    if config.kind == "vllm":
        return config.name or config.model
    assert config.engine is not None, "checked by the configuration"
    return config.engine.served_model


def open_teacher(request: VLIRRun, look: Look, scenes: Mapping[str, tuple[Scene, WorldQuestion]]) -> Teacher:
    """The teacher, ready to be asked. ``scenes`` are what the drawn world's author knows.

    An endpoint's key is ``VLM_R3_API_KEY``. Raises ConfigError or EngineError when it cannot be opened.
    """
    config = request.vlir.teacher
    if config.kind == "drawn-world":
        engine: Engine = EmbeddedTeacher(request.vlir, scenes)
        return Teacher(engine, EMBEDDED_NAME, _NUM_DRAWN, config.temperature)
    settings = config.engine or request.engine
    name = teacher_name(config)
    if config.kind == "http":
        from models.http_engine import HTTPEngine

        remote = HTTPEngine(settings, api_key=os.environ.get("VLM_R3_API_KEY", ""), has_thread=False)
        return Teacher(remote, name, remote.max_in_flight, config.temperature)
    from models.vllm_engine import VLLMEngine

    local = VLLMEngine(resolve_model_path(config.model), settings, look=look, seed=request.seed)
    return Teacher(local, name, settings.max_num_seqs, config.temperature)
