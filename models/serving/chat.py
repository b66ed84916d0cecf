"""A request of OpenAI's chat interface, checked and made into what the look-again loop asks.

What we cannot do is refused, never ignored: a client that asks for ``top_p`` and gets none would measure
something else than it believes.
"""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.config import Look
from models.serving.config import ServingConfig
from models.serving.errors import APIError, bad_request
from models.serving.messages import Body, Conversation, Message, conversation_of

# Fields that OpenAI's clients may send, and the values that ask for nothing.
NEUTRAL: Mapping[str, Sequence[object]] = MappingProxyType(
    {
        "audio": (),
        "frequency_penalty": (0,),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "prediction": (),
        "presence_penalty": (0,),
        "response_format": ({"type": "text"},),
        "stop": ([],),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "top_p": (1,),
        "web_search_options": (),
    }
)
# Fields that change nothing in an answer.
IGNORED = frozenset(
    {
        *(
            "metadata",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning_effort",
        ),
        *("safety_identifier", "service_tier", "store", "user", "verbosity"),
    }
)
_INT64 = 2**63


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class LookAgain(Body):
    """Our field of a request: how the model may look again."""

    max_crops: int | None = Field(None, ge=0)
    return_crops: bool = False


class ChatRequest(BaseModel):
    """The body of a request. Fields beyond these are in ``NEUTRAL`` or ``IGNORED``, or refused."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    look_again: LookAgain | bool | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the loop takes it; pictures are still where the client says.

    ``looks_again`` False asks directly: no system prompt of ours, no crop, no stop at a brace.
    """

    said: Conversation
    look: Look
    looks_again: bool
    num_choices: int
    temperature: float
    seed: int | None
    is_stream: bool
    includes_usage: bool
    returns_crops: bool


def parse(body: bytes, config: ServingConfig) -> Ask:
    """What a request asks. Raises APIError (400, 404) that names the field, what was found, and the rule."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error) from error
    if request.model != config.model_name:
        raise APIError(
            404,
            f"Model {_short(request.model)} is not served here; {config.model_name!r} is.",
            code="model_not_found",
            param="model",
        )
    _refuse_what_we_cannot_do(request.model_extra or {})
    said = conversation_of(request.messages)
    limits = config.limits
    _at_most(said.num_characters, limits.max_text_characters, "characters of text", "messages")
    _at_most(len(said.sources), limits.max_images, "images", "messages")
    num_choices = request.n or 1
    _at_most(num_choices, limits.max_choices, "choices", "n")
    return Ask(
        said=said,
        look=_look(request, len(said.sources), config),
        looks_again=request.look_again is not False,
        num_choices=num_choices,
        temperature=request.temperature or 0.0,
        seed=request.seed,
        is_stream=bool(request.stream),
        includes_usage=request.stream_options is not None and request.stream_options.include_usage,
        returns_crops=isinstance(request.look_again, LookAgain) and request.look_again.return_crops,
    )


def _refuse_what_we_cannot_do(extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        if name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            known = [*ChatRequest.model_fields, *NEUTRAL, *IGNORED]
            close = difflib.get_close_matches(name[:40], known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise bad_request(f"Field {_short(name)} is not known.{hint}", param=name[:80])
        if value not in NEUTRAL[name]:
            raise bad_request(
                f"{name} is {_short(value)}, which this server cannot do. Leave the field out.", param=name
            )


def _look(request: ChatRequest, num_images: int, config: ServingConfig) -> Look:
    """The loop's rules for this request: the server's, within what the client asks for."""
    limits, asked = config.limits, request.look_again
    num_tokens = request.max_completion_tokens or request.max_tokens
    if num_tokens is not None:
        name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        _at_most(num_tokens, limits.max_tokens, "tokens", name)
    room = max(0, config.engine.max_images - num_images)
    if isinstance(asked, LookAgain) and asked.max_crops is not None:
        _at_most(asked.max_crops, limits.max_crops, "crops", "look_again.max_crops")
        _at_most(asked.max_crops, room, f"crops beside {num_images} images", "look_again.max_crops")
        max_crops = asked.max_crops
    else:
        max_crops = min(limits.max_crops, config.look.max_crops, room)
    direct: dict[str, Any] = {"system": None, "max_crops": 0} if asked is False else {"max_crops": max_crops}
    most = num_tokens or min(config.look.max_sampled_tokens, limits.max_tokens)
    # Only tokens and crops bound an answer, not the commands that were refused.
    return config.look.model_copy(update=direct | {"max_sampled_tokens": most, "max_turns": most})


def _at_most(found: int, limit: int, what: str, param: str) -> None:
    if found > limit:
        raise bad_request(
            f"The request asks for {found} {what}; this server allows {limit}.",
            param=param,
            code="limit_exceeded",
        )


def _explained(error: ValidationError) -> APIError:
    """What is wrong, by the name a client knows."""
    # Of a union, pydantic tells every branch; the deepest is the one that was meant.
    problem = max(error.errors(include_url=False, include_context=False), key=lambda each: len(each["loc"]))
    if problem["type"] == "json_invalid":
        return bad_request(f"The body is no JSON: {problem['msg']}.")
    param = _path(problem["loc"])
    found = "" if problem["type"] == "missing" else f" (found {_short(problem['input'])})"
    return bad_request(f"{param or 'The body'}: {problem['msg']}{found}.", param=param)


def _path(location: Sequence[int | str]) -> str:
    """A place in the body, without the names that pydantic gives to the branches of a union."""
    kept: list[str] = []
    for before, part in zip(("", *location), location):
        is_kind_of_part = isinstance(before, int) and part in ("text", "image_url")
        is_type = part in ("str", "bool", "LookAgain") or str(part).startswith("list[")
        if not is_kind_of_part and not is_type:
            kept.append(str(part)[:80])
    return ".".join(kept)


def _short(value: object) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
