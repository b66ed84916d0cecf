"""Yes or no anywhere in a text, by whole words: the rule that VLMEvalKit applies before it asks a judge.

Reference: open-compass/VLMEvalKit @e8e78f05, ``YOrN_Extraction`` of vlmeval/dataset/utils/yorn.py and
``process_punctuation`` of vlmeval/smp (the punctuation rule of the VQA challenge, with its slips).
"""

import re
from typing import Literal

Verdict = Literal["Yes", "No", "Unknown"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The reference passes the flag re.UNICODE where the number of replacements belongs; its value is 32.
_MAX_FULL_STOPS = 32


def yes_or_no(text: str) -> Verdict:
    """``Yes`` or ``No`` when exactly one of the two words stands in the text, else ``Unknown``."""
    words = without_punctuation(text.lower()).split()
    match "yes" in words, "no" in words:
        case True, False:
            return "Yes"
        case False, True:
            return "No"
        case _:
            return "Unknown"


def without_punctuation(text: str) -> str:
    """The text with each mark deleted or replaced by a space, and without full stops.

    A mark is deleted wherever it stands if it stands beside a space anywhere, or if the text has a number
    with a comma. Full stops after the 32nd and those before a digit stay, and so does typographic
    punctuation: "“no”" is no word here.
    """
    has_number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _MARKS:
        is_deleted = has_number_with_comma or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if is_deleted else " ")
    return _FULL_STOP.sub("", stripped, count=_MAX_FULL_STOPS)
