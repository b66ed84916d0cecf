"""The text contract of looking again (paper 3.2): system prompt, tags, the box JSON.

The model thinks inside ``<think>``, asks for a region by writing ``{"bbox_2d": [x1, y1, x2, y2]}``, receives
the crop right there, goes on, and closes with ``<answer>``. The paper shows one picture per question; of
several the command may name one: ``{"bbox_2d": [x1, y1, x2, y2], "image": 2}``.
"""

import json
import re
from dataclasses import dataclass

from models.region import Box

# Printed in section 3.2 of the paper.
SYSTEM_PROMPT = (
    "You need to first think about the reasoning process in your mind, and then provide the answer. "
    'When thinking, you should call the "crop" tool (format: {"bbox_2d": [x1, y1, x2, y2]}) to focus on the '
    "key areas in the image. The reasoning process and the answer are included in the <think> </think> and "
    "<answer> </answer> tags respectively."
)

# Follows the system prompt where a question shows several pictures, which the paper does not treat.
SEVERAL_IMAGES = (
    " There are {number} images. To crop another one than Image 1, name it, for example Image 2 by "
    '{{"bbox_2d": [x1, y1, x2, y2], "image": 2}}.'
)

# Generation pauses at these strings: the first may close a box, the second ends the trajectory.
BOX_STOP = "}"
ANSWER_STOP = "</answer>"
STOPS = (BOX_STOP, ANSWER_STOP)

# Text that a Qwen tokenizer would read as a special token: the end of the turn, the place of a picture.
SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")

_FORMAT = re.compile(r"\s*<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)
# From the last opening tag: a rationale may speak of the tag before it writes one.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_PAUSE = re.compile(rf"\{{[^{{}}]*\}}|{ANSWER_STOP}")
# As broken as box_request still takes for a crop command.
_BOX_LITERAL = re.compile(r"\{[^{}]*bbox_2d[^{}]*\}")


@dataclass(frozen=True, slots=True)
class BoxRequest:
    """A crop command: a box in seen pixels of picture number ``image``, from 1."""

    box: Box
    image: int = 1


@dataclass(frozen=True, slots=True)
class BadJSON:
    """The model wrote a box that is not four numbers in valid JSON, or a picture that is no whole number."""

    text: str


def render_box(box: Box) -> str:
    """The crop command for a box in seen pixels, as the model writes it: whole pixels, rounded."""
    numbers = ", ".join(str(round(value)) for value in box.corners())
    return f'{{"bbox_2d": [{numbers}]}}'


def box_request(text: str, *, seen: int = 0) -> BoxRequest | BadJSON | None:
    """The crop command that ``text`` closes with; None when its last JSON object is not one.

    Generation pauses at every closing brace, so this is asked of prose and other JSON too. Text around the
    object does not matter; a tokenizer may have glued characters to the closing brace, more braces among
    them. What closes within the first ``seen`` characters was asked about before. A command within another
    object (``{"arguments": {"bbox_2d": ...}}``) is one command, that of the inner object.
    """
    end = text.rfind(BOX_STOP)
    while end >= seen:
        start = _opening_brace(text, end)
        found = None if start is None else _command(text[start : end + 1])
        if found is not None:
            return found
        end = len(text[:end].rstrip()) - 1
        if not text[: end + 1].endswith(BOX_STOP):
            return None
    return None


def _command(literal: str) -> BoxRequest | BadJSON | None:
    """The command that a text in braces is; None when it is another object, or only holds one."""
    if "bbox_2d" not in literal:
        return None
    bad = None if _BOX_LITERAL.search(literal, 1) else BadJSON(literal)
    try:
        found = json.loads(literal)
    except (ValueError, RecursionError):  # ValueError: no JSON, or an integer of thousands of digits
        return bad
    if "bbox_2d" not in found:
        return bad
    numbers, image = found["bbox_2d"], found.get("image", 1)
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(_is_number(value) for value in numbers):
        return BadJSON(literal)
    if not isinstance(image, int) or not _is_number(image):
        return BadJSON(literal)
    x1, y1, x2, y2 = map(float, numbers)
    return BoxRequest(Box(x1, y1, x2, y2, space="seen"), image)


def box_literals(text: str) -> list[str]:
    """Every crop command in a text just as it is written, broken ones included."""
    return _BOX_LITERAL.findall(text)


def split_at_commands(text: str) -> list[str]:
    """A text in pieces that each close with a crop command or an answer, and what follows the last."""
    ends = [
        found.end() for found in _PAUSE.finditer(text) if found[0] == ANSWER_STOP or "bbox_2d" in found[0]
    ]
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


def _opening_brace(text: str, end: int) -> int | None:
    """Position of the brace that the one at ``end`` closes."""
    depth = 0
    for position in range(end, -1, -1):
        depth += {"}": 1, "{": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def extract_answer(text: str) -> str | None:
    """The body of the last complete ``<answer>``, stripped; None when there is none."""
    bodies = _ANSWER.findall(text)
    return bodies[-1].strip() if bodies else None


def is_well_formed(text: str) -> bool:
    """The format reward's rule (paper 3.3): one ``<think>`` block, then one ``<answer>``, not empty."""
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    match = _FORMAT.fullmatch(text)
    return match is not None and bool(match["answer"].strip())


def reasoning_text(text: str) -> str:
    """The reasoning without tags and crop commands, broken ones included: the characters that the length
    reward counts. It ends where the last answer begins, and earlier answers are no part of it."""
    answers = list(_ANSWER.finditer(text))
    reasoning = _ANSWER.sub("", text[: answers[-1].start()]) if answers else text.split("<answer>")[0]
    for tag in _TAGS:
        reasoning = reasoning.replace(tag, "")
    return _BOX_LITERAL.sub("", reasoning).strip()
