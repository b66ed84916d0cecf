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
MATCHER, MATCHER_VERSION = "exact-match", "2"

# A longer "answer" is an essay that happens to contain the gold string; nothing of it is matched.
MAX_ANSWER_CHARACTERS = 1000

_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?|[+-]?\.\d+")
_ARTICLE = re.compile(r"^(a|an|the)\s+")
# NFKC folds raised and lowered figures to plain ones, which would make another number of 10\u00b2.
_RAISED = re.compile(r"(?<=\d)(?=[\u2070\u00b9\u00b2\u00b3\u2074-\u207b])")
_LOWERED = re.compile(r"(?<=\d)(?=[\u2080-\u208b])")
_MINUS = "\N{MINUS SIGN}"
_EDGES = " \t\r\n.,;:!?\"'`()[]{}"
# Straight quotes, a backtick, and the curly quotes that the paper's own prompts print.
_QUOTES = "'\"`\u2018\u2019\u201c\u201d"
# A full stop that opens a decimal (".5") belongs to the number.
_LEFT_EDGE = re.compile(r"^(?:[\s,;:!?\"'`()\[\]{}]|\.(?!\d))+")


def normalise(text: str) -> str:
    """Lower case, NFKC, single spaces, no punctuation at the edges, no leading article; the minus sign
    is a hyphen, a power of a figure is written with a caret, an index with an underscore."""
    text = _LOWERED.sub("_", _RAISED.sub("^", text))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = re.sub(r"\s+", " ", folded).replace(_MINUS, "-")
    stripped = ""
    # What an article or a mark hid may have to go too: the "K7".
    while stripped != folded:
        stripped = folded
        folded = _ARTICLE.sub("", _LEFT_EDGE.sub("", stripped.rstrip(_EDGES)))
    return folded


def matches(prediction: str | None, golds: Sequence[str]) -> bool:
    """True when the prediction equals any gold answer after normalisation. None (no answer) never matches.

    Raises ValueError when there is no gold answer: such a row must not be scored at all.
    """
    if not golds:
        raise ValueError("No gold answer to compare with; a row without gold cannot be scored.")
    if prediction is None or len(prediction) > MAX_ANSWER_CHARACTERS:
        return False
    found = normalise(prediction)
    return any(_same(found, normalise(gold)) for gold in golds)


def _same(found: str, gold: str) -> bool:
    if found == gold:
        return bool(gold)
    left, right = _number(found), _number(gold)
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
