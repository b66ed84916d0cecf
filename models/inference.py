"""Ask a model about a picture and get what a program needs: answer, rationale, boxes, confidence."""

import binascii
import math
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import RecordError
from models.pictures import PictureFault, read_picture
from models.protocol import ANSWER_STOP, extract_answer
from models.records import Question
from models.region import PixelBudget, Size, View
from models.trajectory import SampledSpan, Trajectory

_ANSWER_START = "<answer>"
# A person's own picture: bounds only against what would fill the memory.
_MAX_PIXELS = 150_000_000
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class SeenBox:
    """A region that was looked at: (x1, y1, x2, y2) in pixels of the original picture number ``image``."""

    corners: tuple[float, float, float, float]
    image: int


@dataclass(frozen=True, slots=True)
class Answer:
    """How a model answered. ``answer`` is None when it gave none, ``stop`` says how it ended.

    ``rationale`` is the assistant's turn as text. ``confidence`` is the probability that the model, after its
    own rationale, would write exactly this answer; None without an answer or without log-probs.
    """

    answer: str | None
    rationale: str
    boxes: tuple[SeenBox, ...]
    confidence: float | None
    stop: str


def answer_of(
    trajectory: Trajectory,
    sizes: Sequence[Size],
    budget: PixelBudget,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> Answer:
    """The answer in a finished trajectory about pictures of these original sizes.

    ``decode`` makes text of sampled ids; without it there is no confidence.
    """
    views = [View.of(size, budget) for size in sizes]
    boxes = tuple(
        SeenBox(views[event.image - 1].convert(event.box, "original").corners(), event.image)
        for event in trajectory.events
        if event.box is not None and event.error is None
    )
    return Answer(
        answer=extract_answer(trajectory.sampled_text),
        rationale=trajectory.text,
        boxes=boxes,
        confidence=None if decode is None else answer_confidence(trajectory, decode),
        stop=trajectory.stop.value,
    )


def answer_confidence(trajectory: Trajectory, decode: Callable[[Sequence[int]], str]) -> float | None:
    """The probability of the tokens of the last ``<answer>`` body, given all before them.

    None when there is no body or the engine reports no log-probs. A token that reaches into a tag counts.
    """
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    if any(span.token_ids is None or span.logprobs is None for span in spans):
        return None
    ids = [token for span in spans for token in span.token_ids or ()]
    logprobs = [value for span in spans for value in span.logprobs or ()]
    text = decode(ids)
    end = text.rfind(ANSWER_STOP)
    start = text.rfind(_ANSWER_START, 0, end) + len(_ANSWER_START)
    if end < 0 or start < len(_ANSWER_START) or start == end:
        return None

    def length(num_tokens: int) -> int:
        return len(decode(ids[:num_tokens]))

    numbers = range(len(ids) + 1)
    first = bisect_right(numbers, start, key=length) - 1
    last = bisect_left(numbers, end, key=length)
    return math.exp(sum(logprobs[first:last]))


def picture_question(image: bytes | str | Path, text: str, *, id: str = "question") -> Question:
    """A question about a picture given as bytes, as a path, or as a data URI.

    Raises RecordError for what cannot be read as a picture.
    """
    if not isinstance(image, bytes | str | Path):  # a table may hold anything
        raise RecordError(
            f"A picture cannot be a {type(image).__name__}. Give encoded bytes, a path or a data URI; in a "
            "table one in each row."
        )
    try:
        picture = read_picture(_picture_bytes(image), max_pixels=_MAX_PIXELS, max_bytes=_MAX_BYTES)
    except (OSError, ValueError, PictureFault) as error:
        shown = f"{len(image)} bytes" if isinstance(image, bytes) else repr(str(image)[:60])
        raise RecordError(
            f"{shown} cannot be read as a picture: {error}. Give encoded bytes, a path or a data URI."
        ) from error
    return Question.of_image(picture.image, text, id=id)


def _picture_bytes(image: bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path) or not image.startswith("data:"):
        return Path(image).read_bytes()
    header, _, body = image.partition(",")
    if not header.endswith(";base64"):
        raise ValueError("a data URI of a picture is written in base64")
    try:
        return b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data URI is no base64 ({error})") from error
