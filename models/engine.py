"""The engine protocol: what turns a prompt and a half-written assistant turn into the next piece of text.

In-process vLLM (:mod:`models.vllm_engine`), an OpenAI-compatible endpoint (:mod:`models.http_engine`), plain
transformers (:mod:`models.transformers_engine`) and a scripted fake are one interface. An engine does not
know what a crop is.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from models.trajectory import Draft, Finish, GenerationRequest, Piece, SampledSpan


class Engine(Protocol):
    """Continuous batching in two calls: hand requests in at any time, collect whatever has finished."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its id must not be in flight."""

    def step(self) -> list[Piece]:
        """Advance the requests in flight and return those that finished; may be empty while some are in
        flight.

        A failure of one request is a Piece with ``finish="error"``; a failure of the engine itself raises
        EngineError.
        """

    def abort(self, request_id: str) -> None:
        """Forget a request in flight; unknown ids are ignored."""

    def close(self) -> None:
        """Free what the engine holds; requests in flight are lost."""


@runtime_checkable
class DraftingEngine(Engine, Protocol):
    """An engine that can show a turn while it is being written."""

    def drafts(self) -> list[Draft]:
        """The requests in flight with ``shows_drafts`` whose text grew in the last step."""


@runtime_checkable
class WaitingEngine(Engine, Protocol):
    """An engine elsewhere, whose :meth:`step` waits for news instead of computing."""

    def wake(self) -> None:
        """Let the step that waits return, or the next one; from any thread."""


class ScriptedEngine:
    """An engine that answers from a function: tests, and the embedded teacher.

    ``script`` receives the request and returns the text of the next piece; the tokens are one per character,
    so that code which needs ids and log-probs can be exercised without a model. As with a model, the text
    breaks off after the first stop string and finishes with "stop"; without one it finishes with "end".
    """

    def __init__(self, script: Callable[[GenerationRequest], str]) -> None:
        self._script = script
        self._waiting: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def step(self) -> list[Piece]:
        """Answer everything that waits."""
        waiting, self._waiting = self._waiting, []
        return [self._answer(request) for request in waiting]

    def abort(self, request_id: str) -> None:
        """Forget a waiting request."""
        self._waiting = [request for request in self._waiting if request.request_id != request_id]

    def close(self) -> None:
        """Forget everything."""
        self._waiting = []

    def _answer(self, request: GenerationRequest) -> Piece:
        text = self._script(request)
        ends = [text.index(stop) + len(stop) for stop in request.stops if stop in text]
        text = text[: min(ends, default=len(text))]
        if len(text) > request.max_new_tokens:
            return self._piece(request, text[: request.max_new_tokens], "length")
        return self._piece(request, text, "stop" if ends else "end")

    def _piece(self, request: GenerationRequest, text: str, finish: Finish) -> Piece:
        ids = tuple(map(ord, text))
        span = SampledSpan(text=text, token_ids=ids, logprobs=(0.0,) * len(ids))
        return Piece(request_id=request.request_id, span=span, finish=finish)
