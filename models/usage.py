"""What an endpoint was asked for and what that costs: requests, tokens, retries by their cause, failures."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from models.vlir_config import Prices

# Why a request was sent again: 429; 408 or no reply in time; 409 and 5xx; refused, cut or lost connections.
RetryCause = Literal["rate_limit", "timeout", "server", "connection"]
RETRY_CAUSES: tuple[RetryCause, ...] = get_args(RetryCause)

_TOKENS_PER_PRICE = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of one endpoint. ``num_requests`` were answered or failed; a retried one counts once.

    Tokens are those that replies report: what a provider charges for a try that timed out is not known.
    """

    num_requests: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: Mapping[RetryCause, int] = field(default_factory=lambda: dict.fromkeys(RETRY_CAUSES, 0))

    @property
    def num_retries(self) -> int:
        """Tries beyond the first of each request."""
        return sum(self.retries.values())

    def cost(self, prices: Prices) -> float:
        """US dollars for the tokens."""
        spent = self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion
        return spent / _TOKENS_PER_PRICE

    def metrics(self, prefix: str, prices: Prices) -> dict[str, float]:
        """Everything as metrics ``<prefix>/<name>``; the cost in US dollars."""
        values: dict[str, float] = {
            "requests": self.num_requests,
            "failed_requests": self.num_failed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost(prices),
            **{f"retries_{cause}": self.retries[cause] for cause in RETRY_CAUSES},
        }
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def __add__(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(
            self.num_requests + other.num_requests,
            self.num_failed + other.num_failed,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            {cause: self.retries[cause] + other.retries[cause] for cause in RETRY_CAUSES},
        )


class UsageMeter:
    """Counts as requests end; any thread may count and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_requests = self._num_failed = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._retries: dict[RetryCause, int] = dict.fromkeys(RETRY_CAUSES, 0)

    @property
    def total(self) -> Usage:
        """What has been counted so far."""
        with self._lock:
            return Usage(
                self._num_requests,
                self._num_failed,
                self._prompt_tokens,
                self._completion_tokens,
                dict(self._retries),
            )

    def count_reply(self, *, prompt_tokens: int, completion_tokens: int) -> None:
        """One request was answered."""
        with self._lock:
            self._num_requests += 1
            self._prompt_tokens += prompt_tokens
            self._completion_tokens += completion_tokens

    def count_failure(self) -> None:
        """One request got no answer that can be used."""
        with self._lock:
            self._num_requests += 1
            self._num_failed += 1

    def count_retry(self, cause: RetryCause) -> None:
        """A request is about to be sent again."""
        with self._lock:
            self._retries[cause] += 1
