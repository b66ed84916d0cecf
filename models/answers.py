"""One matcher for reward, rejection sampling and the drawn world: exact match after normalisation.

The paper judges by "an exact match criterion" (A.3) and does not define it. Here: case, surrounding
punctuation, repeated white space and a leading article do not matter; two numbers match by value; any of the
gold answers counts.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

# Changes whenever a verdict can change.
MATCHER, MATCHER_VERSION = "exact-match", "3"

# A longer "answer" is an essay that happens to contain the gold string; nothing of it is matched.
MAX_ANSWER_CHARACTERS = 1000

_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?|[+-]?\.\d+")
_ARTICLE = re.compile(r"^(a|an|the)\s+")
# NFKC folds raised and lowered figures to plain ones, which would make another number of 10\u00b2.
_RAISED = re.compile(r"(?<=\d)(?=[\u2070\u00b9\u00b2\u00b3\u2074-\u207b])")
_LOWERED = re.compile(r"(?<=\d)(?=[\u2080-\u208b])")
_MINUS = "\N{MINUS SIGN}"
# Marks of any script that only stand around words go; those that say something ("50%", feet, per mille) stay.
# Of ASCII's the list is whole.
_ASCII_EDGES = " \t\r\n.,;:!?\"'`()[]{}"
_EDGE_CATEGORIES = ("Pi", "Pf", "Ps", "Pe", "Po", "Zs")
_MEANINGFUL = "\u2030\u2031\u2032\u2033\u2034\u00a7\u00b6\u2020\u2021\u2022\u203b"
# What typesetting makes of an apostrophe and of a hyphen.
_PLAIN = str.maketrans(
    {**dict.fromkeys("\u2018\u2019\u02bc", "'"), **dict.fromkeys("\u2010\u2011\u2012\u2013", "-")}
)
# Straight quotes, a backtick, and the curly quotes that the paper's own prompts print.
_QUOTES = "'\"`\u2018\u2019\u201c\u201d"


def normalise(text: str) -> str:
    """Lower case, NFKC, single spaces, no punctuation at the edges, no leading article; the minus sign
    is a hyphen, a power of a figure is written with a caret, an index with an underscore."""
    text = _LOWERED.sub("_", _RAISED.sub("^", text))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = re.sub(r"\s+", " ", folded).replace(_MINUS, "-").translate(_PLAIN)
    stripped = ""
    # What an article or a mark hid may have to go too: the "K7".
    while stripped != folded:
        stripped = folded
        folded = _ARTICLE.sub("", _trimmed(stripped))
    return folded


def _trimmed(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_edge(text[end - 1]):
        end -= 1
    # A full stop that opens a decimal (".5") belongs to the number.
    while start < end and _is_edge(text[start]) and not (text[start] == "." and text[start + 1].isdecimal()):
        start += 1
    return text[start:end]


def _is_edge(character: str) -> bool:
    if character.isascii():
        return character in _ASCII_EDGES
    return character not in _MEANINGFUL and unicodedata.category(character) in _EDGE_CATEGORIES


def matches(prediction: str | None, golds: Sequence[str]) -> bool:
    """True when the prediction equals any gold answer after normalisation. None (no answer) never matches.

    Raises ValueError when there is no gold answer: such a row must not be scored at all.
    """
    if not golds:
        raise ValueError("No gold answer to compare with; a row without gold cannot be scored.")
    if prediction is None or len(prediction) > MAX_ANSWER_CHARACTERS:
        return False
    return any(_same(prediction, gold) for gold in golds)


def _same(prediction: str, gold: str) -> bool:
    found, wanted = normalise(prediction), normalise(gold)
    if not wanted:  # the question asks for a mark: "?"
        mark = unicodedata.normalize("NFKC", gold).strip()
        return bool(mark) and unicodedata.normalize("NFKC", prediction).strip() == mark
    if found == wanted:
        return True
    left, right = _number(found), _number(wanted)
    return left is not None and left == right


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def bare_word(reply: str) -> str:
    """A reply without what people put around a single word: blanks, quotes, one full stop."""
    return reply.strip().strip(_QUOTES).removesuffix(".").strip(_QUOTES)
