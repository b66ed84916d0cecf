"""Which script and which language the texts of a record are written in.

Scripts are exact: Unicode names the script of every letter. Languages are told by py3langid, whose model is
in the package; only a confident verdict on enough letters counts, because names, brands and quotations make a
short question look foreign.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from models.errors import ConfigError

if TYPE_CHECKING:  # importing it reads a model
    from py3langid.langid import LanguageIdentifier

# Far below what questions with foreign names in them get (tests/unit/vlir/test_texts.py). Related languages
# share their probability, so that the best of them alone may have little.
_LEAST_PROBABILITY = 0.005
_FEWEST_LETTERS = 20


def script_share(text: str, scripts: Sequence[str]) -> float:
    """Share of a text's letters, 0 to 1, in these scripts; 1 for a text without letters."""
    letters = [letter for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    if not letters:
        return 1.0
    return sum(_script(letter) in scripts for letter in letters) / len(letters)


def foreign_language(text: str, languages: Sequence[str]) -> str:
    """The language of a text when it is surely none of ``languages`` (ISO 639-1), else an empty string."""
    if sum(map(str.isalpha, text)) < _FEWEST_LETTERS:
        return ""
    ranked = _identifier().rank(text)
    wanted = sum(probability for language, probability in ranked if language in languages)
    return "" if wanted >= _LEAST_PROBABILITY else str(ranked[0][0])


def check_languages(languages: Sequence[str]) -> None:
    """Raise ConfigError for a language that cannot be told."""
    known = _identifier().labels
    unknown = sorted(set(languages) - set(known))
    if unknown:
        raise ConfigError(
            f"validation.languages has {unknown}, which cannot be told. Known are the codes "
            f"{', '.join(sorted(known))}; leave the list empty to accept any language."
        )


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """The first word of the letter's name: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "").partition(" ")[0]


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
