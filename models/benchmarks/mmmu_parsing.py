"""What a text answers to a question of MMMU: the parsers of the benchmark's authors, quirk for quirk.

Reference: MMMU-Benchmark/MMMU @bb0b95a9, mmmu/utils/eval_utils.py (``parse_multi_choice_response``,
``parse_open_response``, ``normalize_str``, ``extract_numbers``). One departure: where the authors draw an
option at random, :func:`parse_option` says None, and the caller counts.

Every function takes any text and needs time linear in its length.
"""

import re
from collections.abc import Callable, Mapping

# How an option's letter looks in a text, in the order in which the looks are tried, and the look by which
# the last of several such letters is found.
Looks = tuple[tuple[str, str], ...]

OFFICIAL_LOOKS: Looks = (("({})", "({})"), (" {} ", " {} "))
# EvolvingLMMs-Lab/lmms-eval @75571cfe (lmms_eval/tasks/mmmu/utils.py) drops the blank before a letter, so
# that "DNA " names A, and accepts "B.", but looks for the last one as before.
LMMS_LOOKS: Looks = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))

_EDGES = (",", ".", "!", "?", ";", ":", "'")
# An option's text is looked for only in longer answers.
_MIN_WORDS = 6

# After these words comes the answer; after "=" too, but only in the last line.
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LAST_INDICATOR = "="
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")

_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
# The authors' expressions, with runs of digits taken whole: a part of a run never matches where the run does
# not, but trying every part would take time quadratic in its length.
_SCIENTIFIC = re.compile(r"-?(?<!\d)\d++(?:\.\d++)?+[eE][+-]?\d++")
_SIMPLE = re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d)(?![,\d])")


def parse_option(response: str, options: Mapping[str, str], looks: Looks = OFFICIAL_LOOKS) -> str | None:
    """The letter that a text names last, by letter or else by the option's text; None when it names none.

    ``options`` maps the letters of the question to their texts.
    """
    text = response
    for edge in _EDGES:
        text = text.strip(edge)
    text = f" {text} "
    for look, place in looks:
        named = [letter for letter in options if look.format(letter) in text]
        if named:
            return _last(named, [text.rfind(place.format(letter)) for letter in named])
    if len(text.split()) < _MIN_WORDS:
        return None
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return _last(named, [lowered.rfind(options[letter].lower()) for letter in named]) if named else None


def parse_open(response: str) -> list[str | float]:
    """The answers that a text may mean: its telling ends and all numbers in them; numbers come first."""
    ends = _telling_ends(response.strip().strip(".").lower())
    found: dict[str | float, None] = {}
    for text in [*ends, *(number for end in ends for number in numbers_in(end))]:
        found.update(dict.fromkeys(normalise(text)))
    return sorted(found, key=lambda each: (isinstance(each, str), str(each)))


def normalise(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a single letter as a word, twice."""
    stripped = text.strip()
    try:
        return [round(float(stripped.replace(",", "")), 2)]
    except ValueError:
        lowered = stripped.lower()
    # So that the answer "c" is not found in every word with a c.
    return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def numbers_in(text: str) -> list[str]:
    """All numbers of a text as they are written: with commas, scientific, simple. One may appear twice."""
    patterns = (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE)
    return [number for pattern in patterns for number in pattern.findall(text)]


def _telling_ends(text: str) -> list[str]:
    """For each line what follows an indicator, the shortest; the whole text when no line has one.

    The authors mean to cut at sentences too, but look for a capital letter in a text in lower case.
    """
    lines = text.split("\n")
    ends = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, _LAST_INDICATOR) if number == len(lines) else _INDICATORS
        end = ""
        for indicator in indicators:
            _, found, tail = line.rpartition(indicator)
            tail = tail.strip()
            # An empty end counts as none, and the next indicator may replace it by a longer one.
            if found and (not end or len(tail) < len(end)):
                end = tail
        if end and end not in _TRIVIAL:
            ends.append(end)
    return ends or [text]


def _last(letters: list[str], places: list[int]) -> str:
    """The letter at the greatest place, the first of several."""
    place_of: Callable[[str], int] = dict(zip(letters, places, strict=True)).__getitem__
    return max(letters, key=place_of)
