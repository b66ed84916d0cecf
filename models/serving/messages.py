"""The messages of a chat request: a system text or none, questions with their replies, the question now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.protocol import SPECIAL_TOKEN
from models.serving.errors import bad_request

_ORDER = (
    "A conversation is a system message or none, then user and assistant messages in turn, at the end the "
    "user message to answer."
)


class Body(BaseModel):
    """A part of a request's body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageURL(Body):
    """Where a picture is: a data URI, or http(s). ``detail`` is taken and changes nothing."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Body):
    """A picture, at its place in the message."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """One message. The fields below ``name`` are those of a reply that a client sends back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    function_call: None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)
    look_again: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a user message says; ``places`` says before which character of the text each picture stands."""

    text: str
    sources: tuple[str, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """All messages: ``earlier`` are questions with the text of their replies."""

    system: str | None
    earlier: tuple[tuple[Question, str], ...]
    question: Question

    @property
    def sources(self) -> tuple[str, ...]:
        """Where all pictures are, in order."""
        questions = (*(question for question, _ in self.earlier), self.question)
        return tuple(source for question in questions for source in question.sources)

    @property
    def num_characters(self) -> int:
        """Text of all messages."""
        earlier = sum(len(question.text) + len(reply) for question, reply in self.earlier)
        return len(self.system or "") + earlier + len(self.question.text)


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """What was said. Raises APIError (400) for an order or a content that this model's chat does not have."""
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    first = int(roles[0] == "system")
    for index, (role, due) in enumerate(zip(roles[first:], _in_turn(len(roles)), strict=False), first):
        if role != due:
            raise bad_request(
                f"messages.{index} is of the role {role!r} where {due!r} is due. {_ORDER}{_hint(role, due)}",
                param=f"messages.{index}.role",
            )
    if roles[-1] != "user":
        raise bad_request(
            f"The last message is of the role {roles[-1]!r}, so there is no question to answer. {_ORDER}",
            param=f"messages.{len(roles) - 1}.role",
        )
    contents = [_content(message, index) for index, message in enumerate(messages)]
    said = contents[first:]
    earlier = tuple((question, reply.text) for question, reply in zip(said[:-1:2], said[1::2], strict=True))
    return Conversation(contents[0].text if first else None, earlier, said[-1])


def _in_turn(number: int) -> list[str]:
    return ["user", "assistant"] * number


def _hint(role: str, due: str) -> str:
    if role in ("tool", "function"):
        return " This server has no tools."
    return " Join messages of one role in a row into one." if (role, due) == ("user", "assistant") else ""


def _content(message: Message, index: int) -> Question:
    """Text, sources of pictures, and their places. Only a user may show pictures; nobody may say nothing."""
    parts: Sequence[TextPart | ImagePart] = (
        message.content
        if isinstance(message.content, list)
        else [TextPart(type="text", text=message.content or "")]
    )
    param = f"messages.{index}.content"
    text, sources, places = "", [], []
    for part in parts:
        if isinstance(part, TextPart):
            text += part.text
        else:
            sources.append(part.image_url.url)
            places.append(len(text))
    if sources and message.role != "user":
        raise bad_request(
            f"The {message.role} message holds an image. Put images into user messages.", param=param
        )
    if not text.strip():
        raise bad_request(f"The {message.role} message has no text.", param=param)
    if found := SPECIAL_TOKEN.search(text):
        raise bad_request(
            f"The text holds the special token {found[0]!r}, which the model would read as a mark of the "
            "chat's own. Leave it out.",
            param=param,
        )
    return Question(text, tuple(sources), tuple(places))
