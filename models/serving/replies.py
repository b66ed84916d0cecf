"""What goes back to a client: the JSON of OpenAI's chat interface, and our field ``look_again`` in it.

Everything a client of OpenAI reads is as it expects; what the model looked at is in a field that such a
client ignores (docs/serving.md).
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from models.narration import Looked, Told, Wrote
from models.protocol import extract_answer
from models.records import png_bytes
from models.region import View, snap_outwards
from models.rollout import Asked
from models.serving.chat import Ask
from models.serving.driver import Ended
from models.trajectory import StopReason, Trajectory

STREAM_END = b"data: [DONE]\n\n"

_BY_ITSELF = (StopReason.ANSWERED, StopReason.END_WITHOUT_ANSWER, StopReason.PROTOCOL_ERROR)


@dataclass(frozen=True, slots=True)
class Reply:
    """What all bodies of one answer share."""

    id: str
    created: int
    model: str
    ask: Ask
    asked: Asked

    def look(self, looked: Looked) -> dict[str, Any]:
        """One look, with boxes in pixels as seen and of the original, as whole numbers there."""
        known = 1 <= looked.image <= len(self.asked.views)
        view = self.asked.views[looked.image - 1] if known else None
        body: dict[str, Any] = {
            "position": looked.position,
            "image": looked.image,
            "box": None if looked.box is None else list(looked.box.corners()),
            "seen_size": None if view is None else [view.seen.width, view.seen.height],
            "original_box": _original_box(looked, view),
            "original_size": None if view is None else [view.original.width, view.original.height],
            "crop_size": None,
            "error": looked.error,
        }
        if looked.crop is not None:
            body["crop_size"] = [looked.crop.size.width, looked.crop.size.height]
            if self.ask.returns_crops:
                png = base64.b64encode(png_bytes(looked.crop.image)).decode()
                body["crop"] = f"data:image/png;base64,{png}"
        return body

    def completion(self, choices: Sequence["Choice"]) -> bytes:
        """The whole answer."""
        bodies = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": choice.text,
                    "refusal": None,
                    "look_again": {"looks": choice.looks, **ending(choice.trajectory)},
                },
                "logprobs": None,
                "finish_reason": finish_reason(choice.trajectory),
            }
            for index, choice in enumerate(choices)
        ]
        return to_json({**self._head("chat.completion"), "choices": bodies, "usage": self.usage(choices)})

    def delta(self, index: int, told: Told) -> bytes:
        """What just happened in a choice, as an event."""
        if isinstance(told, Wrote):
            return self._chunk(index, {"content": told.text})
        return self._chunk(index, {"look_again": {"looks": [self.look(told)]}})

    def first(self, index: int) -> bytes:
        """The event that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def last(self, index: int, trajectory: Trajectory) -> bytes:
        """The event that ends a choice."""
        return self._chunk(index, {"look_again": ending(trajectory)}, finish_reason(trajectory))

    def usage_chunk(self, choices: Sequence["Choice"]) -> bytes:
        """The event with the counts, for a client that asks for it."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(choices)})

    def usage(self, choices: Sequence["Choice"]) -> dict[str, Any]:
        """Tokens over all choices. Given are question, crops and messages; pictures among them apart."""
        given = sum(choice.num_given_tokens for choice in choices)
        sampled = sum(choice.trajectory.num_sampled_tokens for choice in choices)
        pictures = [*self.asked.prompt.shown()] * len(choices)
        crops = [crop.picture for choice in choices for crop in choice.trajectory.crops]
        factor = self.ask.look.pixel_factor
        return {
            "prompt_tokens": given,
            "completion_tokens": sampled,
            "total_tokens": given + sampled,
            "prompt_tokens_details": {
                "image_tokens": sum(picture.size.area // factor**2 for picture in [*pictures, *crops]),
                "crop_tokens": sum(crop.size.area // factor**2 for crop in crops),
            },
        }

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(slots=True)
class Choice:
    """One answer as it comes together."""

    text: str = ""
    looks: list[dict[str, Any]] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def trajectory(self) -> Trajectory:
        """What happened, once it has ended."""
        assert self.ended is not None, "asked of an answer that is whole"
        return self.ended.trajectory

    @property
    def num_given_tokens(self) -> int:
        """Tokens the model was given."""
        assert self.ended is not None, "asked of an answer that is whole"
        return self.ended.num_given_tokens


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(body) + b"\n\n"


def finish_reason(trajectory: Trajectory) -> str:
    """OpenAI's word for how it ended: ``length`` where a limit cut it off."""
    return "stop" if trajectory.stop in _BY_ITSELF else "length"


def ending(trajectory: Trajectory) -> dict[str, Any]:
    """How it ended in our words, and the body of ``<answer>``."""
    return {"stop": trajectory.stop, "answer": extract_answer(trajectory.sampled_text)}


def models_body(name: str, source: str, created: int, limits: dict[str, Any]) -> dict[str, Any]:
    """The one entry of /v1/models."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vlm-r3",
        "root": source,
        "limits": limits,
    }


def _original_box(looked: Looked, view: View | None) -> list[int] | None:
    if looked.box is None or view is None or looked.error is not None:
        return None
    return [
        round(corner)
        for corner in snap_outwards(view.convert(looked.box, "original"), view.original).corners()
    ]
