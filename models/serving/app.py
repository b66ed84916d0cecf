"""The HTTP interface: ``/v1/chat/completions``, ``/v1/models``, ``/health``, ``/metrics``.

Everything but a whole answer is a JSON error in OpenAI's form. A client that goes away, whether it waits for
an answer or reads a stream, frees its work at once.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.engine import Engine
from models.serving.answering import Answerer
from models.serving.chat import Ask, parse
from models.serving.config import ServingConfig
from models.serving.driver import Driver
from models.serving.errors import APIError
from models.serving.metrics import CONTENT_TYPE, Metrics
from models.serving.replies import STREAM_END, event, models_body

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # in the metrics only: nobody is there to read it
_RETRY_AFTER_SECONDS = "1"
_PATHS = ("/v1/chat/completions", "/v1/models", "/health", "/metrics")


def build_app(
    config: ServingConfig,
    engine: Engine,
    *,
    api_key: str = "",
    on_failure: Callable[[], None] = lambda: None,
) -> ASGIApp:
    """The application around an engine, which it drives but does not close.

    With an ``api_key``, everything under /v1 wants it as a bearer token. ``on_failure`` is called, on another
    thread, when the engine has failed for good.
    """
    metrics = Metrics()
    service = _Service(config, engine, metrics, api_key, on_failure)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _Chat(service), methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/health", service.health),
            Route("/metrics", service.scrape),
        ],
        exception_handlers={APIError: _refused, HTTPException: _no_route, Exception: _broke},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return _Counted(app, metrics)


class _Service:
    """What the endpoints share."""

    def __init__(
        self,
        config: ServingConfig,
        engine: Engine,
        metrics: Metrics,
        api_key: str,
        on_failure: Callable[[], None],
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.num_in_flight = 0
        self.answerer: Answerer
        self._engine = engine
        self._api_key = api_key
        self._on_failure = on_failure
        self._created = int(time.time())

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs the driver while the server is up."""
        driver = Driver(
            self._engine,
            # More than the engine computes at once: while a crop is cut, another one takes the place.
            max_in_flight=self.config.engine.max_num_seqs * 5 // 4,
            metrics=self.metrics,
            on_failure=self._on_failure,
        )
        self.answerer = Answerer(self.config, driver, self.metrics)
        try:
            yield
        finally:
            await asyncio.to_thread(driver.close)
            await self.answerer.close()

    def authorize(self, request: Request) -> None:
        """Raises APIError (401) without the right key."""
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._api_key and not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise APIError(
                401,
                "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.authorize(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self.authorize(request)
        if request.path_params["name"] != self.config.model_name:
            raise APIError(
                404, f"Only {self.config.model_name!r} is served here.", code="model_not_found", param="model"
            )
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the engine lives."""
        failure = self.answerer.driver.failure
        if failure:
            return JSONResponse({"status": "failed", "reason": failure}, 503)
        return JSONResponse({"status": "ok", "in_flight": self.num_in_flight})

    async def scrape(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def _model(self) -> dict[str, object]:
        limits = {**self.config.limits.model_dump(), "max_model_len": self.config.engine.max_model_len}
        return models_body(self.config.model_name, self.config.source, self._created, limits)


class _Place:
    """One request among those in flight. It leaves before its last byte is sent: who has read that one may
    ask again at once.
    """

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._is_held = True
        service.num_in_flight += 1
        service.metrics.in_flight.inc()

    def leave(self) -> None:
        """Make room for another; harmless when it has been done."""
        if self._is_held:
            self._is_held = False
            self._service.num_in_flight -= 1
            self._service.metrics.in_flight.dec()


class _Chat:
    """POST /v1/chat/completions."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._limits = service.config.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.authorize(Request(scope))
        if service.num_in_flight >= self._limits.max_concurrent_requests:
            raise APIError(
                429,
                f"{service.num_in_flight} requests are in flight, as many as this server takes. Try again.",
                code="too_many_requests",
            )
        place = _Place(service)
        try:
            body = await self._body(scope, receive)
            if body is not None:
                await _unless_gone(self._answer(parse(body, service.config), send, place), receive)
        finally:
            place.leave()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None when the client went away in the middle. Raises APIError (408, 413)."""
        limit = self._limits.max_request_bytes
        declared = Request(scope).headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_long(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.max_upload_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_long(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.max_upload_seconds
            raise APIError(408, f"The request did not arrive within {seconds:g} s.", code="timeout") from None

    async def _answer(self, ask: Ask, send: Send, place: "_Place") -> None:
        answer = None
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._limits.max_seconds):
                answer = await self._service.answerer.begin(ask)
                if not ask.is_stream:
                    body = await answer.whole()
                    place.leave()
                    await _send_body(sending, body, b"application/json", more=False)
                    return
                async for events in answer.events():
                    await _send_body(sending, events, b"text/event-stream", more=True, begins=not has_begun)
                place.leave()
                await _send_body(sending, STREAM_END, b"", more=False, begins=False)
        except TimeoutError:
            seconds = self._limits.max_seconds
            late = APIError(504, f"No whole answer within {seconds:g} s.", code="time_limit")
            await self._tell(late, has_begun, send)
        except APIError as error:
            await self._tell(error, has_begun, send)
        finally:
            if answer is not None:
                answer.abort()

    async def _tell(self, error: APIError, has_begun: bool, send: Send) -> None:
        """As the reply, or as the last event of a stream that has begun."""
        if not has_begun:
            raise error
        await _send_body(send, event(error.body()), b"", more=False, begins=False)


class _Counted:
    """Counts what every request was answered with."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work, but give it up when the client goes away."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_body(send: Send, body: bytes, kind: bytes, *, more: bool, begins: bool = True) -> None:
    """A piece of a 200's body, with its head before the first."""
    if begins:
        headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
        if not more:
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _too_long(limit: int) -> APIError:
    return APIError(
        413, f"The request is over this server's limit of {limit} bytes.", code="request_too_large"
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError), "registered for this class"
    headers = {"retry-after": _RETRY_AFTER_SECONDS} if error.status in (429, 503) else {}
    if error.status == 413:
        headers["connection"] = "close"  # what follows of the body is not read
    return JSONResponse(error.body(), error.status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    message = f"{request.method} {request.url.path[:80]}: {error.detail}."
    return JSONResponse(APIError(error.status_code, message).body(), error.status_code, error.headers)


async def _broke(request: Request, error: Exception) -> Response:
    log.error("A request failed", exc_info=error)
    return JSONResponse(APIError(500, "The server failed; its log says why.").body(), 500)
