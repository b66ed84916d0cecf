"""A model behind an HTTP interface: check what can be checked at once, then serve until asked to end."""

import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from models.config import Preset, resolve_model_path
from models.errors import ConfigError
from models.serving.config import ServingConfig, limits_for
from tasks.model_source import FoundModel, check_model
from tasks.settings import Settings, serving_api_key


def check_serving(
    preset: Preset,
    model: str,
    *,
    settings: Settings,
    host: str,
    port: int,
    model_name: str,
    allow_private_urls: bool,
    limits: Mapping[str, object],
) -> ServingConfig:
    """What the server is told. Raises ConfigError for what cannot work, before anything heavy is imported."""
    if preset.engine.kind == "http":
        raise ConfigError("engine.kind is 'http', which is a server already. Use 'vllm' or 'transformers'.")
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} is no port: 1 to 65535, or 0 for a free one.")
    if not model_name:
        raise ConfigError("--model-name is empty. Clients name the model by it.")
    chosen = limits_for(preset.look, preset.engine, limits)
    check_model(model, settings)
    # Pictures, the crops of this answer, and as many crops of earlier answers of its conversation.
    room = chosen.max_images + 2 * chosen.max_crops
    return ServingConfig(
        model_name=model_name,
        source=model,
        host=host,
        port=port,
        allow_private_urls=allow_private_urls,
        look=preset.look,
        engine=preset.engine.model_copy(update={"max_images": max(room, preset.engine.max_images)}),
        limits=chosen,
    )


def run_server(config: ServingConfig, model: FoundModel, *, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; ``say`` gets what a person wants to know.

    Raises ConfigError when the address is taken, EngineError when the engine does not start or fails.
    """
    from models.serving.engine_process import EngineProcess
    from models.serving.server import serve

    api_key = serving_api_key()
    folder = resolve_model_path(model.path)
    began = time.monotonic()
    source = f"{model.source}, " if model.source else ""
    say(f"vlm-r3 {version('vlm-r3')} loads {source}{folder}")

    def announce(url: str) -> None:
        say(f"ready after {time.monotonic() - began:.1f} s")
        for line in how_to_call(url, config.model_name, needs_key=bool(api_key)):
            say(line)

    serve(
        config,
        lambda: EngineProcess(Path(folder), config.engine, look=config.look),
        api_key=api_key,
        announce=announce,
    )


def how_to_call(url: str, model_name: str, *, needs_key: bool) -> list[str]:
    """The address, and an example that works when it is pasted."""
    key = "the key" if needs_key else "none"
    header = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    return [
        f"serving   {url}/v1   model {model_name!r}",
        f"          {url}/health   {url}/metrics",
        f"Python    OpenAI(base_url={url + '/v1'!r}, api_key={key!r}).chat.completions.create(",
        f"              model={model_name!r}, messages=[...])",
        f"shell     curl {url}/v1/models{header}",
    ]
