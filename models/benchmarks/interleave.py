"""Pictures at their places in a question's text: MMMU names them there, as in "Which is older, <image 2>?".

A picture is shown where it is first named, as the benchmark's own harnesses do; pictures that are not named
stand before the text. To look again a model must be able to name a picture, so in that style each of several
pictures is introduced as "Image 2: ", and later mentions say "Image 2".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from models.config import Style


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A text and its pictures in order: picture ``numbers[i]`` stands before character ``places[i]``."""

    text: str
    numbers: tuple[int, ...]
    places: tuple[int, ...]


def interleave(text: str, numbers: Sequence[int], mark: re.Pattern[str] | None, style: Style) -> Interleaved:
    """Put pictures where ``mark`` (one group: the number) names them; a mark without a picture stays.

    ``numbers`` are those of the row's pictures. Without a mark all of them stand before the text.
    """
    marks = [match for match in mark.finditer(text) if int(match[1]) in numbers] if mark else []
    named = list(dict.fromkeys(int(match[1]) for match in marks))
    unnamed = [number for number in numbers if number not in named]
    order = unnamed + named
    is_labelled = style == "look-again" and len(order) > 1
    labels = {number: f"Image {place}" for place, number in enumerate(order, start=1)}

    written, places, end = "", [], 0
    for number in unnamed:
        written += f"{labels[number]}: " if is_labelled else ""
        places.append(len(written))
        written += "\n" if is_labelled else ""
    for match in marks:
        number = int(match[1])
        written += text[end : match.start()]
        end = match.end()
        if len(places) > order.index(number):
            written += labels[number] if is_labelled else match[0]
        else:
            written += f"{labels[number]}: " if is_labelled else ""
            places.append(len(written))
    written += text[end:]
    return Interleaved(written, tuple(order), tuple(places))
