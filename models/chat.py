"""One client for OpenAI-compatible chat endpoints, for the HTTP engine and the judges of benchmarks.

What may pass is tried again with growing waits: 408, 409, 429, 5xx, time-outs, refused and cut connections;
an endpoint that says when to come back (``Retry-After``) is not asked before. What still fails is an error,
never a reply, and so is a reply that is no chat completion. The key goes into the request's header and into
nothing else: where an endpoint repeats it in a message, it is struck out.

All requests of a client run on one event loop, hundreds may be in flight: in a thread of its own, so that any
thread may ask, or in the thread of its one user, who then lets it run (:meth:`ChatClient.run`). The second
computes a fifth less where requests are many: two threads hand Python's lock to and fro with each of them.
"""

import asyncio
import io
import json
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from models.errors import EngineError
from models.usage import RetryCause, Usage, UsageMeter

# It takes a noticeable part of a second to import: whoever opens a client waits for that.
if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_CAUSES: Mapping[int, RetryCause] = {408: "timeout", 409: "server", 429: "rate_limit"}
_MAX_BACKOFF_SECONDS = 30.0
# An endpoint that wants to be left alone for longer is a failure: a run must not stand still unnoticed.
_MAX_RETRY_AFTER_SECONDS = 600.0
_MAX_QUOTED = 300
_MAX_AT_ONCE = 2**20  # bytes


class ContextFull(EngineError):
    """The endpoint says that the request is longer than its context."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The first choice of a chat completion, and the tokens that the endpoint counted (None: not counted).

    ``stop_reason`` is the stop string that ended the text, at a server that names it (``names_stops``).
    """

    text: str
    finish_reason: str | None
    stop_reason: str | None
    names_stops: bool
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Passing:
    """Why a try failed that may succeed later, and how long the endpoint wants to be left alone."""

    cause: RetryCause
    problem: str
    retry_after_seconds: float = 0.0


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way. ``on_done`` gets it back once it has ended, in the thread of its client."""

    body: bytes
    on_done: "Callable[[Call], None]"
    task: "asyncio.Task[Reply] | None" = None

    def result(self) -> Reply:
        """The reply to a request that has ended. Raises ContextFull or EngineError when there is none."""
        assert self.task is not None, "it has ended"
        if self.task.cancelled():
            raise EngineError("The request was cancelled, or its client closed.")
        return self.task.result()


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
        has_thread: bool = True,
    ) -> None:
        self._endpoint = endpoint
        self._url = endpoint.rstrip("/") + "/chat/completions"
        self._api_key = api_key.strip()  # a key from a file has a line break, which no header may have
        self._timeout_seconds = timeout_seconds
        self._max_tries = max_tries
        self._backoff_seconds = backoff_seconds
        self._meter = UsageMeter()
        # Requests wait here and not for a connection, so that a time-out measures the endpoint alone.
        self._places = asyncio.Semaphore(max_connections)
        self._gate = threading.Lock()
        self._is_closed = False
        # What crosses between threads goes in batches: waking the other one costs as much as a request.
        self._departing: deque[Call] = deque()
        self._landed: list[Call] = []
        self._loop = asyncio.new_event_loop()
        self._has_landed = asyncio.Event()
        self._thread: threading.Thread | None = None
        if has_thread:
            self._thread = threading.Thread(target=self._loop.run_forever, name="chat-client", daemon=True)
            self._thread.start()
        self._session = self._run(self._open(max_connections))

    @property
    def usage(self) -> Usage:
        """What this client has asked for so far."""
        return self._meter.total

    def complete(self, body: Mapping[str, Any]) -> Reply:
        """The endpoint's reply to a chat completion, waited for.

        Raises ContextFull when the request is too long, EngineError when there is no reply after all tries.
        """
        done = threading.Event()
        call = self.start(json.dumps(body).encode(), lambda _: done.set())
        done.wait()
        return call.result()

    def run(self, seconds: float) -> None:
        """Let requests go on in this thread until one has ended, for some seconds at most; for a client
        without a thread.
        """
        self._run(self._wait(seconds))

    def start(self, body: bytes, on_done: Callable[[Call], None]) -> Call:
        """Send a chat completion, as JSON, and return at once.

        Raises EngineError when the client is closed.
        """
        call = Call(body, on_done)
        with self._gate:
            if self._is_closed:
                raise EngineError(f"The client of {self._endpoint} is closed.")
            self._departing.append(call)
            if len(self._departing) == 1:
                self._loop.call_soon_threadsafe(self._take_off)
        return call

    def cancel(self, call: Call) -> None:
        """End a request, if it is still on its way."""
        with self._gate:
            if not self._is_closed:
                self._loop.call_soon_threadsafe(_cancel, call)

    def close(self) -> None:
        """Stop trying again, drop what is in flight and close the connections."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
        self._run(self._shut())
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of some work in the loop."""
        if self._thread is None:
            return self._loop.run_until_complete(work)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _wait(self, seconds: float) -> None:
        self._has_landed.clear()
        timer = self._loop.call_later(seconds, self._has_landed.set)
        await self._has_landed.wait()
        timer.cancel()

    async def _open(self, max_connections: int) -> "aiohttp.ClientSession":
        import aiohttp
        import httpx

        # The authorities that are trusted everywhere else: certifi's, or those of SSL_CERT_FILE.
        is_secure = self._url.startswith("https:")
        connector = aiohttp.TCPConnector(
            limit=max_connections, ssl=httpx.create_ssl_context() if is_secure else True
        )
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            # Looked up once; aiohttp itself would do so for every request, in another thread.
            proxy=_proxy_of(self._endpoint),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
        )

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._deliver()
        await self._session.close()

    def _take_off(self) -> None:
        """Begin every request that waits; runs in the loop."""
        while self._departing:
            call = self._departing.popleft()
            call.task = self._loop.create_task(self._complete(call.body))
            call.task.add_done_callback(partial(self._land, call))

    def _land(self, call: Call, _: "asyncio.Task[Reply]") -> None:
        """Note a request that has ended; runs in the loop."""
        if not self._landed:
            self._loop.call_soon(self._deliver)
        self._landed.append(call)

    def _deliver(self) -> None:
        """Hand over what has ended; runs in the loop."""
        landed, self._landed = self._landed, []
        for call in landed:
            call.on_done(call)
        self._has_landed.set()

    async def _complete(self, body: bytes) -> Reply:
        async with self._places:
            try:
                reply = await self._persist(body)
            except EngineError:
                self._meter.count_failure()
                raise
        self._meter.count_reply(
            prompt_tokens=reply.prompt_tokens or 0, completion_tokens=reply.completion_tokens or 0
        )
        return reply

    async def _persist(self, body: bytes) -> Reply:
        """Try until there is a reply, a refusal, or no try left."""
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._try(body)
            if isinstance(outcome, Reply):
                return outcome
            log.info("%s, try %d: %s", self._endpoint, attempt, outcome.problem)
            if attempt == self._max_tries or outcome.retry_after_seconds > _MAX_RETRY_AFTER_SECONDS:
                raise EngineError(
                    f"{self._endpoint} gave no reply in {attempt} tries, the last: {outcome.problem}"
                )
            self._meter.count_retry(outcome.cause)
            wait_seconds = _backoff_seconds(self._backoff_seconds, attempt)
            await asyncio.sleep(max(wait_seconds, outcome.retry_after_seconds))

    async def _try(self, body: bytes) -> Reply | _Passing:
        import aiohttp

        try:
            # aiohttp sends a file in pieces, so that large pictures do not hold up the others.
            data = body if len(body) < _MAX_AT_ONCE else io.BytesIO(body)
            async with self._session.post(self._url, data=data, allow_redirects=False) as response:
                received = await response.read()
        except TimeoutError:
            return _Passing("timeout", f"ReadTimeout: no reply within {self._timeout_seconds:g} s")
        except aiohttp.ClientConnectionError as error:
            return _Passing("connection", f"ConnectError: {error}")
        except aiohttp.ClientError as error:
            return _Passing("connection", f"{type(error).__name__}: {error}")
        if 200 <= response.status < 300:
            return self._parsed(received)
        problem = f"status {response.status}: {self._quoted(received)}"
        if response.status in _CAUSES or response.status >= 500:
            cause = _CAUSES.get(response.status, "server")
            return _Passing(cause, problem, _retry_after_seconds(response.headers.get("Retry-After", "")))
        raise (ContextFull if _is_too_long(received) else EngineError)(
            f"{self._endpoint} refused the request, {problem}"
        )

    def _parsed(self, data: bytes) -> Reply:
        """The reply in a chat completion. Raises EngineError for what is none, or has no text."""
        try:
            body = json.loads(data)
            choice = body["choices"][0]
            text = choice["message"]["content"]
            finish_reason, stop_reason = choice.get("finish_reason"), choice.get("stop_reason")
            if isinstance(text, str):
                text.encode()  # half a surrogate pair is no text
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise EngineError(
                f"The reply is no chat completion ({type(error).__name__}): {self._quoted(data)!r}"
            ) from error
        completion_tokens = _count(body, "completion_tokens")
        # A model may end its turn at once; then it sampled a token, which an endpoint counts.
        if not isinstance(text, str) or not (text or completion_tokens):
            raise EngineError(f"The reply has no text: {self._quoted(data)!r}")
        return Reply(
            text=text,
            finish_reason=finish_reason,
            stop_reason=stop_reason if isinstance(stop_reason, str) else None,
            names_stops="stop_reason" in choice,
            prompt_tokens=_count(body, "prompt_tokens"),
            completion_tokens=completion_tokens,
        )

    def _quoted(self, data: bytes) -> str:
        text = data.decode("utf-8", "replace")
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text[:_MAX_QUOTED]


def _cancel(call: Call) -> None:
    if call.task is not None:
        call.task.cancel()


def _proxy_of(endpoint: str) -> str | None:
    """The proxy that the environment names for an endpoint."""
    parts = urlsplit(endpoint)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _count(body: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens; None where the endpoint gives none."""
    usage = body.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _is_too_long(data: bytes) -> bool:
    return b"context length" in data or b"context_length" in data


def _retry_after_seconds(header: str) -> float:
    """How long to wait by a Retry-After header: a number of seconds, or a date; 0 for anything else."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _backoff_seconds(first: float, attempt: int) -> float:
    """Doubles with every try, with up to 50 % of chance so that clients do not return in step."""
    return min(first * 2 ** (attempt - 1) * random.uniform(1.0, 1.5), _MAX_BACKOFF_SECONDS)
