"""Choices of an endpoint on a command line, checked before anything is imported or asked."""

import re
from urllib.parse import urlsplit

from models.errors import ConfigError

_USER = re.compile(r"//[^/\s@]+@")


def without_user(text: str) -> str:
    """A text, with the user and password taken out of every address in it."""
    return _USER.sub("//", text)


def check_no_password(address: str) -> str:
    """The address. Raises ValueError when it holds a user or a password: every record of a run shows it."""
    if without_user(address) != address:
        raise ValueError(
            "holds a user or a password, which every record of the run would show; give the address without, "
            "and the key in the environment (VLM_R3_API_KEY, VLM_R3_JUDGE_API_KEY)"
        )
    return address


def check_url(endpoint: str) -> None:
    """Raises ConfigError for an endpoint that is no URL, or that holds a password."""
    parts = urlsplit(endpoint)
    try:
        check_no_password(endpoint)
    except ValueError as error:
        raise ConfigError(f"Endpoint {without_user(endpoint)!r}: it {error}.") from error
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
