"""Which option of a multiple-choice question a text names: the rule that VLMEvalKit applies before a judge.

Reference: open-compass/VLMEvalKit @e8e78f05, ``can_infer`` of vlmeval/utils/matching_util.py. First a letter
that stands alone near the end, then "the answer is B", then the text of exactly one option.
"""

import re
from collections.abc import Mapping

REFUSED = "Z"

# What API models of the time said instead of an answer; the case matters.
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FAILED_CALL = "Failed to obtain answer via API"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# A letter that stands alone counts when it is among so many last words: "Option B is right because of the
# graph" may go on to say something else.
_NUM_LAST_WORDS = 4
# No word boundary after the letter: "the answer is brass" names B. Letters after D are not looked for.
_SENTENCE = re.compile(r"(?i)answer\s+is\s+\**([ABCD])")


def infer_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that ``answer`` names, "Z" when it refuses to answer, None when the rule cannot tell.

    ``choices`` maps letters to option texts.
    """
    return _by_letter(answer, choices) or _by_text(answer, choices)


def _by_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    if _FAILED_CALL in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_SEPARATORS).split()
    named = [letter for letter in choices if letter in words]
    # The first place where the letter stands decides.
    if len(named) == 1 and words.index(named[0]) >= len(words) - _NUM_LAST_WORDS:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    sentence = _SENTENCE.search(answer)
    return sentence[1].upper() if sentence and sentence[1].upper() in choices else None


def _by_text(answer: str, choices: Mapping[str, str]) -> str | None:
    lowered = answer.lower()
    # A long answer may mention an option in passing.
    if len(lowered) > 2 * sum(map(len, choices.values())):
        return None
    named = [letter for letter, text in choices.items() if text.lower() in lowered]
    return named[0] if len(named) == 1 else None
