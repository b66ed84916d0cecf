"""The engine behind an OpenAI-compatible chat endpoint: a stronger teacher, a judge, a served model.

Two ways to go on after a crop, because the interface has no word for a picture in the middle of a reply:

* ``assistant`` (vLLM's server): the crop is an image part *inside* the assistant message that is continued
  (``continue_final_message``), the format of the paper. The text to continue must be the last part, so a turn
  that ends in a crop is closed by an empty one. The server tokenises the turn again, so token ids and
  log-probs are not ours to train on.
* ``user_turn`` (any endpoint): the reply is closed, the crop comes as a user message, and a new reply begins.

Requests run on threads through :class:`models.chat.ChatClient`, which tries again what may pass; what still
fails is a piece with ``finish="error"``, never an answer.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache
from typing import Any

from models.chat import ChatClient, ContextFull
from models.config import EngineConfig
from models.errors import EngineError
from models.protocol import ANSWER_STOP, BOX_STOP, box_request
from models.records import png_bytes
from models.region import Picture
from models.trajectory import CropSpan, Finish, GenerationRequest, Piece, SampledSpan, Span

CROP_TEXT = "The region you asked for. Go on."
CONTINUE_TEXT = "Go on."
_POLL_SECONDS = 0.05


class HTTPEngine:
    """A :class:`models.engine.Engine` on a chat endpoint. Spans have text only, no ids and no log-probs."""

    def __init__(self, config: EngineConfig, *, api_key: str = "") -> None:
        self._config = config
        self._client = ChatClient(
            config.endpoint,
            api_key=api_key,
            timeout_seconds=config.timeout_seconds,
            max_tries=config.max_tries,
            backoff_seconds=config.backoff_seconds,
            max_connections=config.max_num_seqs,
        )
        self._pool = ThreadPoolExecutor(max_workers=config.max_num_seqs, thread_name_prefix="http-engine")
        self._running: dict[str, Future[Piece]] = {}

    def submit(self, request: GenerationRequest) -> None:
        """Send a request; its id must not be in flight."""
        if request.request_id in self._running:
            raise EngineError(f"Request {request.request_id!r} is already in flight.")
        self._running[request.request_id] = self._pool.submit(self._generate, request)

    def step(self) -> list[Piece]:
        """What has come back; waits a moment when nothing has."""
        wait(self._running.values(), timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        done = [request_id for request_id, future in self._running.items() if future.done()]
        return [self._running.pop(request_id).result() for request_id in done]

    def abort(self, request_id: str) -> None:
        """Forget a request in flight: its reply is dropped when it comes. Unknown ids are ignored."""
        future = self._running.pop(request_id, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Stop retrying, drop what is in flight and close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._running.clear()
        self._client.close()

    def _generate(self, request: GenerationRequest) -> Piece:
        cuts_replies = "stop" in self._config.omit
        sent = replace(request, stops=()) if cuts_replies else request
        try:
            piece = _piece(sent, self._client.complete(chat_body(sent, self._config)))
        except ContextFull:
            return Piece(request.request_id, SampledSpan(""), "context")
        except EngineError as error:
            return Piece(request.request_id, SampledSpan(""), "error", str(error))
        return _cut(piece, request.stops) if cuts_replies else piece


def chat_body(request: GenerationRequest, config: EngineConfig) -> dict[str, Any]:
    """The JSON body of a chat completion for one turn."""
    messages = _question_messages(request)
    body: dict[str, Any] = {
        "model": config.served_model,
        "messages": messages,
    }
    wanted = {
        # A limit beyond the context is none, and servers refuse it. Theirs may be shorter than we were told.
        config.token_limit_field: request.max_new_tokens
        if request.max_new_tokens < config.max_model_len
        else None,
        "temperature": request.temperature,
        "stop": list(request.stops) or None,
        "seed": request.seed,
    }
    body |= {name: value for name, value in wanted.items() if value is not None and name not in config.omit}
    if config.continuation == "user_turn":
        messages += _alternating(request.spans)
        return body
    body["include_stop_str_in_output"] = True
    if request.spans:
        messages.append({"role": "assistant", "content": _turn_parts(request.spans)})
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def _question_messages(request: GenerationRequest) -> list[dict[str, Any]]:
    prompt = request.prompt
    content = [_text_part(part) if isinstance(part, str) else _image_part(part) for part in prompt.parts()]
    user = {"role": "user", "content": content}
    return [user] if prompt.system is None else [{"role": "system", "content": prompt.system}, user]


def _turn_parts(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """The assistant's turn so far as parts, the last one text: that is where it is continued."""
    parts: list[dict[str, Any]] = []
    for span in spans:
        if isinstance(span, CropSpan):
            parts.append(_image_part(span.picture))
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += span.text
        else:
            parts.append(_text_part(span.text))
    if parts[-1]["type"] != "text":
        parts.append(_text_part(""))
    return parts


def _alternating(spans: Sequence[Span]) -> list[dict[str, Any]]:
    """The turn so far as closed assistant messages, each answered by a user message."""
    messages: list[dict[str, Any]] = []
    for position, span in enumerate(spans):
        if isinstance(span, SampledSpan):
            messages.append({"role": "assistant", "content": span.text})
            answered = position + 1 < len(spans) and not isinstance(spans[position + 1], SampledSpan)
            if not answered:
                messages.append({"role": "user", "content": CONTINUE_TEXT})
        elif isinstance(span, CropSpan):
            messages.append({"role": "user", "content": [_image_part(span.picture), _text_part(CROP_TEXT)]})
        else:
            messages.append({"role": "user", "content": span.text.strip()})
    return messages


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image_part(picture: Picture) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _data_uri(picture)}}


@lru_cache(maxsize=4096)
def _data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture.image)).decode()


def _piece(request: GenerationRequest, reply: Mapping[str, Any]) -> Piece:
    choice = reply["choices"][0]
    text, stop = _with_stop(choice, request.stops)
    num_tokens = (reply.get("usage") or {}).get("completion_tokens")
    span = SampledSpan(text, reported_tokens=num_tokens)
    finish: Finish = "stop" if stop else "end"
    if choice.get("finish_reason") == "length":
        finish = "context" if num_tokens is not None and num_tokens < request.max_new_tokens else "length"
    return Piece(request.request_id, span, finish)


def _cut(piece: Piece, stops: Sequence[str]) -> Piece:
    """The piece as if its endpoint had stopped at the first box or answer.

    A brace that closes no box is passed over, unlike an endpoint's stop: nothing would come of pausing there.
    The tokens stay those that were sampled.
    """
    text = piece.span.text
    for end in sorted(found.end() for stop in stops for found in re.finditer(re.escape(stop), text)):
        if text[:end].endswith(ANSWER_STOP) or box_request(text[:end]) is not None:
            return replace(piece, span=replace(piece.span, text=text[:end]), finish="stop")
    return piece


def _with_stop(choice: Mapping[str, Any], stops: Sequence[str]) -> tuple[str, str | None]:
    """The reply's text with the stop string that ended it, and that string; None when none did.

    vLLM keeps the string and names it. An endpoint that follows OpenAI does neither: the string is then the
    one that closes what the text left open, a box or an answer.
    """
    text = choice["message"]["content"]
    if choice.get("finish_reason") != "stop":
        return text, None
    named = choice.get("stop_reason")
    if "stop_reason" in choice or text.endswith(tuple(stops)):
        stop = named if isinstance(named, str) else next((s for s in stops if text.endswith(s)), None)
        return (text if stop is None or text.endswith(stop) else text + stop), stop
    if ANSWER_STOP in stops and text.count("<answer>") > text.count(ANSWER_STOP):
        return text + ANSWER_STOP, ANSWER_STOP
    if BOX_STOP in stops and text.count("{") > text.count(BOX_STOP):
        return text + BOX_STOP, BOX_STOP
    return text, None
