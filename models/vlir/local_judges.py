"""The judges of the drawn world: the two filters of paper 3.1.2 without a model, a key or a network.

They see exactly what any other judge would see (the crop of Listing 3, the text of Listing 4) and know the
world only as a reader of its pictures and sentences: its colours, its codes, its vocabulary. They are not
perfect; the tests measure how often they err.
"""

import re
from collections.abc import Sequence

import numpy as np

from models.tiny.world import COLORS, DIGITS, LETTERS, PLACES
from models.trajectory import Prompt
from models.usage import Usage
from models.vlir.judges import read_coherence_prompt

# Least channel (0 to 255) of a pixel. Glyphs are white; the background is 150 in blue everywhere, and the
# ringing of the bicubic filter lifts that to 161 at most.
_GLYPH_LEVEL = 185
_CUT_LEVEL = 175
_MIN_GLYPH_PIXELS = 8
# Two characters side by side: width over height of the ink. Crops are stretched when their sides are rounded.
_MIN_INK_ASPECT, _MAX_INK_ASPECT = 0.85, 3.5
_MAX_COLOR_DISTANCE = 45
_MIN_CARD_SHARE = 0.04

_BOX = re.compile(r"\{[^{}]*\}")
_CODE = re.compile(rf"\b[{LETTERS}][{DIGITS}]\b")
_PLACE = re.compile("|".join(PLACES))
_SUM = re.compile(r"(\d+) \+ (\d+) = (\d+)")
_TOPIC = re.compile(
    r"\b(card|cards|code|crop|picture|read|look|looks|see|zoom|sum|together|says|shows)\b|\d",
    re.IGNORECASE,
)
_MAX_SENTENCES_PER_STAGE = 3


class _LocalJudge:
    """What needs no endpoint and holds nothing."""

    usage = Usage()

    def close(self) -> None:
        """Nothing is held."""


class SemanticUnitJudge(_LocalJudge):
    """Listing 3 from the pixels of the crop alone: one card, with a code that the border does not cut."""

    name = "local-semantic-unit"

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str]:
        """ "yes" or "no" per prompt; the picture is the last of the prompt."""
        return [
            "yes" if holds_one_card(np.asarray(prompt.pictures[-1].image)) else "no" for prompt in prompts
        ]


class CoherenceJudge(_LocalJudge):
    """Listing 4 by rules: it looks for what is asked, reads it, derives the answer, and says nothing else."""

    name = "local-coherence"

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str]:
        """ "yes" or "no" per prompt; :func:`find_incoherence` says why."""
        return [
            "no" if find_incoherence(*read_coherence_prompt(prompt.text)) else "yes" for prompt in prompts
        ]


def holds_one_card(pixels: np.ndarray) -> bool:
    """Whether a crop, uint8 (height, width, 3), shows just one card, with an uncut code of two characters."""
    least = pixels.min(axis=-1)  # (height, width)
    ink = least > _GLYPH_LEVEL
    if ink.sum() < _MIN_GLYPH_PIXELS:
        return False
    bright = least > _CUT_LEVEL
    if bright[0].any() or bright[-1].any() or bright[:, 0].any() or bright[:, -1].any():
        return False
    columns, rows = ink.any(axis=0), ink.any(axis=1)
    aspect = _extent(columns) / _extent(rows)
    if not _MIN_INK_ASPECT <= aspect <= _MAX_INK_ASPECT or _num_runs(columns) < 2:
        return False
    return _num_card_colors(pixels) == 1


def find_incoherence(question: str, answer: str, reasoning: str) -> str:
    """What is wrong with a rationale about the drawn world, in a few words; empty when nothing is."""
    thought = reasoning.split("</think>")[0].removeprefix("<think>")
    stages = _BOX.split(thought)
    # Two cards may carry the same code, so only what follows one crop must not be said twice.
    if any(len(set(_sentences(stage))) < len(_sentences(stage)) for stage in stages):
        return "repeats itself"
    sentences = _sentences(thought)
    if len(sentences) > _MAX_SENTENCES_PER_STAGE * len(stages):
        return "too long"
    beside_the_point = next((sentence for sentence in sentences if not _TOPIC.search(sentence)), "")
    if beside_the_point:
        return f"beside the point: {beside_the_point}"
    return _find_bad_look(question, stages) or _find_bad_conclusion(question, answer, stages)


def _find_bad_look(question: str, stages: Sequence[str]) -> str:
    """Every look must be announced with the next colour that is asked about, and lead to a reading."""
    asked = [] if _asks_where(question) else _colors(question)
    announced = [_colors(stage)[-1:] for stage in stages[:-1]]
    if any(not colors for colors in announced):
        return "looks without saying for what"
    looked = [colors[0] for colors in announced]
    if looked != asked:
        return f"looks at {', '.join(looked) or 'nothing'}, should look at {', '.join(asked) or 'nothing'}"
    if any(not _CODE.search(stage) for stage in stages[1:]):
        return "does not say what a crop shows"
    return ""


def _find_bad_conclusion(question: str, answer: str, stages: Sequence[str]) -> str:
    """The codes read must lead to the answer, by themselves or by a right sum; a place must be the answer."""
    codes = [codes[0] for stage in stages[1:] if (codes := _CODE.findall(stage))]
    if any(len(set(_CODE.findall(stage))) > 1 for stage in stages):
        return "reads one crop in two ways"
    asked = _colors(question)
    if _asks_where(question):
        said = [*_colors(stages[-1]), *_PLACE.findall(stages[-1])]
        return "" if said == [*asked, answer] else f"says {said} but answers {answer}"
    if len(asked) == 1:
        return "" if codes == [answer] else f"reads {codes} but answers {answer}"
    sums = _SUM.findall(stages[-1])
    if len(sums) != 1:
        return "does not add once"
    first, second, total = sums[0]
    if [first, second] != [code[1] for code in codes]:
        return f"adds {first} and {second} after reading {codes}"
    if int(first) + int(second) != int(total) or total != answer:
        return f"says {first} + {second} = {total}"
    return ""


def _asks_where(question: str) -> bool:
    return "quarter" in question.split()


def _sentences(text: str) -> list[str]:
    plain = " ".join(_BOX.sub(" ", text).split())
    return [part.strip().casefold() for part in re.split(r"(?<=[.!?])\s+", plain) if part.strip()]


def _colors(text: str) -> list[str]:
    return re.findall(rf"\b({'|'.join(COLORS)})\b", text.casefold())


def _num_card_colors(pixels: np.ndarray) -> int:
    """How many of the world's card colours fill a noticeable part of the crop."""
    palette = np.array(list(COLORS.values()), dtype=np.int16)  # (colours, 3)
    sparse = pixels[::2, ::2]  # cards are large; a quarter of the pixels tells the same
    distance = np.abs(sparse[:, :, None].astype(np.int16) - palette).max(axis=-1)  # (height, width, colours)
    shares = (distance < _MAX_COLOR_DISTANCE).mean(axis=(0, 1))
    return int((shares >= _MIN_CARD_SHARE).sum())


def _extent(marks: np.ndarray) -> int:
    """Distance from the first to the last mark of a boolean row, both included."""
    places = np.flatnonzero(marks)
    return int(places[-1] - places[0] + 1)


def _num_runs(marks: np.ndarray) -> int:
    """How many stretches of marks a boolean row has."""
    return int(marks[0]) + int((marks[1:] & ~marks[:-1]).sum())
