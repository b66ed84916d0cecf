"""The engine behind an OpenAI-compatible chat endpoint: a stronger teacher, a judge, a served model.

Two ways to go on after a crop, because the interface has no word for a picture in the middle of a reply:

* ``assistant`` (vLLM's server): the crop is an image part *inside* the assistant message that is continued
  (``continue_final_message``), the format of the paper. The text to continue must be the last part, so a turn
  that ends in a crop is closed by an empty one. The server tokenises the turn again, so token ids and
  log-probs are not ours to train on.
* ``user_turn`` (any endpoint): the reply is closed, the crop comes as a user message, and a new reply begins.

Requests run on the event loop of :class:`models.chat.ChatClient`, which tries again what may pass; what still
fails is a piece with ``finish="error"``, never an answer. A picture that the model sees as it is in its file
is sent as that file, any other one as PNG.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from models import png
from models.chat import Call, ChatClient, ContextFull, Reply
from models.config import EngineConfig
from models.errors import EngineError
from models.protocol import ANSWER_STOP, BOX_STOP, box_request
from models.region import Picture
from models.trajectory import CropSpan, Finish, GenerationRequest, Piece, Prompt, SampledSpan, Span
from models.usage import Usage

CROP_TEXT = "The region you asked for. Go on."
CONTINUE_TEXT = "Go on."
_WAIT_SECONDS = 0.05
_PNG = b"\x89PNG"
# Stands for a picture while a body is written; nobody can guess it and put it into a question.
_PICTURE_MARK = uuid4().hex


class HTTPEngine:
    """A :class:`models.engine.Engine` on a chat endpoint. Spans have text only, no ids and no log-probs."""

    def __init__(self, config: EngineConfig, *, api_key: str = "", has_thread: bool = True) -> None:
        """Without a thread, requests go on only while :meth:`step` is called, always in one thread."""
        self._config = config
        self._has_thread = has_thread
        self._client = ChatClient(
            config.endpoint,
            api_key=api_key,
            timeout_seconds=config.timeout_seconds,
            max_tries=config.max_tries,
            backoff_seconds=config.backoff_seconds,
            max_connections=config.max_num_seqs,
            has_thread=has_thread,
        )
        self._running: dict[str, Call] = {}
        self._requests: dict[Call, GenerationRequest] = {}
        self._landed: SimpleQueue[Call] = SimpleQueue()
        # Every turn sends the earlier pictures again; each is encoded once, and forgotten with the picture.
        self._encoded: WeakKeyDictionary[Picture, bytes] = WeakKeyDictionary()

    @property
    def max_in_flight(self) -> int:
        """How many requests are worth having in flight: a few more than connections, so that the next one is
        ready as soon as one gets free.
        """
        return self._config.max_num_seqs * 5 // 4

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked for so far."""
        return self._client.usage

    def submit(self, request: GenerationRequest) -> None:
        """Send a request; its id must not be in flight."""
        if request.request_id in self._running:
            raise EngineError(f"Request {request.request_id!r} is already in flight.")
        sent = replace(request, stops=()) if self._cuts_replies else request
        call = self._client.start(self._body(sent), self._landed.put)
        self._running[request.request_id] = call
        self._requests[call] = request

    def step(self) -> list[Piece]:
        """What has come back; waits a moment when nothing has."""
        if not self._running:
            return []
        if not self._has_thread:
            self._client.run(_WAIT_SECONDS)
        calls = []
        try:
            calls.append(self._landed.get(block=self._has_thread, timeout=_WAIT_SECONDS))
            while True:
                calls.append(self._landed.get_nowait())
        except Empty:
            pass
        # An aborted request lands, too.
        return [self._piece(call) for call in calls if call in self._requests]

    def abort(self, request_id: str) -> None:
        """Forget a request in flight: its reply is dropped when it comes. Unknown ids are ignored."""
        call = self._running.pop(request_id, None)
        if call is not None:
            del self._requests[call]
            self._client.cancel(call)

    def close(self) -> None:
        """Stop retrying, drop what is in flight and close the connections."""
        self._running.clear()
        self._requests.clear()
        self._client.close()

    @property
    def _cuts_replies(self) -> bool:
        return "stop" in self._config.omit

    def _piece(self, call: Call) -> Piece:
        request = self._requests.pop(call)
        del self._running[request.request_id]
        try:
            reply = call.result()
        except ContextFull:
            return Piece(request.request_id, SampledSpan(""), "context")
        except EngineError as error:
            return Piece(request.request_id, SampledSpan(""), "error", str(error))
        if self._cuts_replies:
            return _cut(_piece(replace(request, stops=()), reply), request.stops)
        return _piece(request, reply)

    def _body(self, request: GenerationRequest) -> bytes:
        """The body of a chat completion as JSON, pictures as data URIs that are made once each."""
        pictures: list[Picture] = []

        def mark(picture: Picture) -> str:
            pictures.append(picture)
            return _PICTURE_MARK

        text = json.dumps(chat_body(request, self._config), default=mark).encode()
        first, *rest = text.split(_PICTURE_MARK.encode())
        parts = [first]
        for picture, following in zip(pictures, rest, strict=True):
            parts += (self._data_uri(picture), following)
        return b"".join(parts)

    def _data_uri(self, picture: Picture) -> bytes:
        uri = self._encoded.get(picture)
        if uri is None:
            uri = self._encoded[picture] = data_uri(picture)
        return uri


def chat_body(request: GenerationRequest, config: EngineConfig) -> dict[str, Any]:
    """The body of a chat completion for one turn; where JSON has the URL of a picture, the picture itself."""
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
    messages: list[dict[str, Any]] = (
        [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    )
    for exchange in prompt.earlier:
        messages.append(_question_message(exchange.question))
        messages.append({"role": "assistant", "content": _turn_parts(exchange.reply)})
    return [*messages, _question_message(prompt)]


def _question_message(prompt: Prompt) -> dict[str, Any]:
    content = [_text_part(part) if isinstance(part, str) else _image_part(part) for part in prompt.parts()]
    return {"role": "user", "content": content}


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
    return {"type": "image_url", "image_url": {"url": picture}}


def data_uri(picture: Picture) -> bytes:
    """A picture as a data URI: its own file where it has one, else PNG."""
    data = picture.file or png.encode(picture.image)
    kind = b"png" if data.startswith(_PNG) else b"jpeg"
    return b"data:image/%b;base64,%b" % (kind, base64.b64encode(data))


def _piece(request: GenerationRequest, reply: Reply) -> Piece:
    text, stop = _with_stop(reply, request.stops)
    num_tokens = reply.completion_tokens
    span = SampledSpan(text, reported_tokens=num_tokens)
    finish: Finish = "stop" if stop else "end"
    if reply.finish_reason == "length":
        finish = "context" if num_tokens is not None and num_tokens < request.max_new_tokens else "length"
    return Piece(request.request_id, span, finish, context_tokens=reply.prompt_tokens or 0)


def _cut(piece: Piece, stops: Sequence[str]) -> Piece:
    """The piece as if its endpoint had stopped at the first box or answer.

    A brace that closes no box is passed over, unlike an endpoint's stop: nothing would come of pausing there.
    The tokens stay those that were sampled.
    """
    text = piece.span.text
    for end in sorted(found.end() for stop in stops for found in re.finditer(re.escape(stop), text)):
        if text[:end].endswith(ANSWER_STOP) or box_request(text[:end], seen=end - 1) is not None:
            return replace(piece, span=replace(piece.span, text=text[:end]), finish="stop")
    return piece


def _with_stop(reply: Reply, stops: Sequence[str]) -> tuple[str, str | None]:
    """The reply's text with the stop string that ended it, and that string; None when none did.

    vLLM keeps the string and names it. An endpoint that follows OpenAI does neither: the string is then the
    one that closes what the text left open, a box or an answer.
    """
    text = reply.text
    if reply.finish_reason != "stop":
        return text, None
    if reply.names_stops or text.endswith(tuple(stops)):
        stop = reply.stop_reason or next((s for s in stops if text.endswith(s)), None)
        return (text if stop is None or text.endswith(stop) else text + stop), stop
    if ANSWER_STOP in stops and text.count("<answer>") > text.count(ANSWER_STOP):
        return text + ANSWER_STOP, ANSWER_STOP
    if BOX_STOP in stops and text.count("{") > text.count(BOX_STOP):
        return text + BOX_STOP, BOX_STOP
    return text, None
