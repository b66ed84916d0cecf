"""One client for OpenAI-compatible chat endpoints, for the HTTP engine and the judges of benchmarks.

What may pass is tried again with growing waits: 408, 409, 429, 5xx, time-outs, refused connections. What
still fails is an error, never a reply. The key goes into the request's header and into nothing else: where an
endpoint repeats it in a message, it is struck out.
"""

import logging
import random
import threading
from collections.abc import Mapping
from typing import Any

import httpx

from models.errors import EngineError

log = logging.getLogger(__name__)

_RETRIED_STATUS = (408, 409, 429)
_MAX_BACKOFF_SECONDS = 30.0
_MAX_QUOTED = 300


class ContextFull(EngineError):
    """The endpoint says that the request is longer than its context."""


class ChatClient:
    """A chat endpoint, used by many threads at once."""

    def __init__(
        self,
        endpoint: str,
        *,
        api_key: str,
        timeout_seconds: float,
        max_tries: int,
        backoff_seconds: float,
        max_connections: int,
    ) -> None:
        self._endpoint = endpoint
        self._api_key = api_key
        self._max_tries = max_tries
        self._backoff_seconds = backoff_seconds
        self._client = httpx.Client(
            base_url=endpoint.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=max_connections),
        )
        self._closing = threading.Event()

    def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The endpoint's reply to a chat completion; its first choice is known to have a text.

        Raises ContextFull when the request is too long, EngineError when there is no reply after all tries.
        """
        problem = ""
        for attempt in range(self._max_tries):
            if attempt and self._closing.wait(_backoff_seconds(self._backoff_seconds, attempt)):
                break
            try:
                response = self._client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return self._parsed(response)
            problem = f"status {response.status_code}: {self._quoted(response)}"
            if response.status_code not in _RETRIED_STATUS and response.status_code < 500:
                error_type = ContextFull if _is_too_long(response) else EngineError
                raise error_type(f"{self._endpoint} refused the request, {problem}")
            log.info("%s, try %d: %s", self._endpoint, attempt + 1, problem)
        raise EngineError(f"{self._endpoint} gave no reply in {self._max_tries} tries, the last: {problem}")

    def close(self) -> None:
        """Stop trying again and close the connections."""
        self._closing.set()
        self._client.close()

    def _parsed(self, response: httpx.Response) -> Mapping[str, Any]:
        """The reply as JSON. Raises EngineError when it is not a chat completion with text."""
        try:
            reply = response.json()
            content = reply["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(
                f"The reply is no chat completion ({type(error).__name__}): {self._quoted(response)!r}"
            ) from error
        if not isinstance(content, str):
            raise EngineError(f"The reply has no text: {self._quoted(response)!r}")
        return reply

    def _quoted(self, response: httpx.Response) -> str:
        text = response.text
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text[:_MAX_QUOTED]


def _is_too_long(response: httpx.Response) -> bool:
    return "context length" in response.text or "context_length" in response.text


def _backoff_seconds(first: float, attempt: int) -> float:
    """Doubles with every try, with up to 50 % of chance so that clients do not return in step."""
    return min(first * 2 ** (attempt - 1) * random.uniform(1.0, 1.5), _MAX_BACKOFF_SECONDS)
