"""What a server is told: what it serves, where it listens, and every limit of a request."""

from collections.abc import Mapping

from pydantic import Field, ValidationError

from models.config import Config, EngineConfig, Look
from models.errors import ConfigError

_CHARACTERS_PER_TOKEN = 4  # of English, about; longer text does not fit into the context


class Limits(Config):
    """What one request, and all together, may take. More is refused with a 4xx that names the limit."""

    max_request_bytes: int = Field(32 * 2**20, ge=1024, description="Body of a request, pictures included.")
    max_image_bytes: int = Field(16 * 2**20, ge=1, description="One encoded picture.")
    max_image_pixels: int = Field(16_777_216, ge=1, description="One decoded picture, width x height.")
    max_images: int = Field(8, ge=0, description="Pictures of one conversation.")
    max_text_characters: int = Field(
        32_768, ge=1, description="Text of a conversation, system prompt included."
    )
    max_tokens: int = Field(2048, ge=1, description="Sampled tokens of one answer.")
    max_crops: int = Field(6, ge=0, description="Crops of one answer.")
    max_choices: int = Field(8, ge=1, description="Answers to one request (n).")
    max_concurrent_requests: int = Field(256, ge=1, description="Requests in flight; more get a 429.")
    max_seconds: float = Field(
        120.0, gt=0, description="From the last byte of a request to its whole answer."
    )
    max_upload_seconds: float = Field(
        30.0, gt=0, description="A request's body must arrive within this time."
    )
    max_download_seconds: float = Field(10.0, gt=0, description="A picture named by a URL must arrive in it.")
    max_shutdown_seconds: float = Field(
        30.0, ge=0, description="What is in flight when the server is asked to end may take this long."
    )
    num_decoders: int = Field(2, ge=1, description="Threads that decode pictures.")


def limits_for(look: Look, engine: EngineConfig, given: Mapping[str, object]) -> Limits:
    """The given limits; of the others, those that depend on the model as large as it allows.

    Raises ConfigError for a limit that is unknown, out of range, or beyond what the model can do.
    """
    possible = {
        "max_images": engine.max_images,
        "max_crops": look.max_crops,
        "max_tokens": engine.max_model_len - 1,
        "max_text_characters": _CHARACTERS_PER_TOKEN * engine.max_model_len,
    }
    try:
        limits = Limits.model_validate({**possible, **given})
    except ValidationError as error:
        problems = [f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors()]
        raise ConfigError(f"Limits are not valid: {'; '.join(problems)}.") from error
    possible["max_crops"] = engine.max_images - 1
    for name in ("max_images", "max_crops", "max_tokens"):
        if getattr(limits, name) > possible[name]:
            raise ConfigError(
                f"{name} {getattr(limits, name)} is more than the {possible[name]} that the engine has room "
                "for. Lower it, or raise engine.max_images or engine.max_model_len with --set."
            )
    return limits


class ServingConfig(Config):
    """One server of one model."""

    model_name: str = Field("vlm-r3", min_length=1, description="What clients put into the field 'model'.")
    source: str = Field("", description="Where the model came from, for /v1/models.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    allow_private_urls: bool = Field(
        False, description="Fetch pictures from private, loopback and link-local addresses too."
    )
    look: Look
    engine: EngineConfig
    limits: Limits = Limits()
