"""Which models a chat endpoint serves: asked with a short time-out, before anything is started."""

from typing import Any
from urllib.parse import urlsplit

import httpx

from models.endpoints import check_url
from models.errors import ConfigError
from tasks.settings import endpoint_key

_TIMEOUT_SECONDS = 5.0


def models_at(base: str) -> list[str]:
    """The names of the models at an endpoint. Raises ConfigError when it does not answer with a list."""
    return [str(model["id"]) for model in _listed(base)]


def only_model(base: str, *, option: str = "--served-model") -> str:
    """The one model that an endpoint serves. Raises ConfigError when there are none or several; ``option``
    is where to name one.
    """
    check_url(base)
    names = models_at(base)
    if len(names) != 1:
        raise ConfigError(
            f"{without_password(base)} serves {len(names)} models ({', '.join(names) or 'none'}). Name one "
            f"by {option}."
        )
    return names[0]


def is_vllm(base: str) -> bool:
    """Whether vLLM's own server answers there, which can go on with a half-written reply; False for an
    endpoint that does not list its models.
    """
    try:
        return any(model.get("owned_by") == "vllm" for model in _listed(base))
    except ConfigError:
        return False


def _listed(base: str) -> list[dict[str, Any]]:
    reply = get(base.rstrip("/") + "/models", key=endpoint_key())
    try:
        return [{**model, "id": model["id"]} for model in reply.json()["data"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{without_password(base)}: its list of models is none ({error!r}). Give the base URL of an "
            "OpenAI-compatible endpoint, with its version."
        ) from error


def get(url: str, *, key: str = "") -> httpx.Response:
    """A good reply. Raises ConfigError with the address, without a password in it, when there is none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(url, headers=headers, timeout=_TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{without_password(url)} does not answer: {error}. Is it started?") from error
    if not reply.is_success:
        raise ConfigError(f"{without_password(url)} answers with status {reply.status_code}. Is it well?")
    return reply


def without_password(url: str) -> str:
    """The address without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
