"""Choices of an endpoint on a command line, checked before anything is imported or asked."""

from urllib.parse import urlsplit

from models.errors import ConfigError


def check_url(endpoint: str) -> None:
    """Raises ConfigError for an endpoint that is no URL."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"Endpoint {endpoint!r} is no URL. Give the base URL with its version, for example "
            "http://127.0.0.1:8000/v1."
        )


def check_judge(*, endpoint: str, model: str) -> None:
    """Raises ConfigError for half of a judge or an endpoint that is no URL, in the words of the options."""
    if bool(endpoint) != bool(model):
        given, missing = ("endpoint", "model") if endpoint else ("model", "endpoint")
        raise ConfigError(
            f"--judge-{given} {endpoint or model} needs --judge-{missing}: a judge is a base URL and the "
            "name of a model that it serves."
        )
    if endpoint:
        check_url(endpoint)
