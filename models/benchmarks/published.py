"""What a benchmark's authors published: columns, sizes, and how a row becomes a question.

Each benchmark's module declares its set as ``PUBLISHED``. Types are written as the data set cards on the
Hugging Face hub write them, with ``list<...>`` for a sequence, ``struct<...>`` for fields in alphabetical
order, and ``image`` for the pair of bytes and path in which pictures are stored there.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from string import ascii_uppercase

from models.benchmarks.scorer import BENCHMARKS, Row
from models.config import Style
from models.errors import ConfigError

ANSWER_WITH_A_WORD = "Answer the question using a single word or phrase."
ANSWER_WITH_A_LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSet:
    """One benchmark as published.

    ``splits`` maps a split to its number of rows; where the benchmark has several configurations a split is
    written "configuration/split". ``digests`` maps a split to the digest of its rows
    (:class:`models.benchmarks.sets.LocalSet`), where we have read the published files; a digest that is there
    wins over every other pin. ``pictures`` are the image columns in order; ``picture_mark`` names the
    n-th of them in a text, n in its one group, where the authors do that.
    ``id_of`` gets a row and its place in the split, from 0; an id occurs once. ``answers`` are the gold
    answers as text, empty where the authors keep them; the scorer, not these, decides what is right.
    ``direct`` is the usual prompt; ``look_again`` has the question and its options but asks for no form.
    """

    name: str
    source: str
    licence: str
    splits: Mapping[str, int]
    columns: Mapping[str, str]
    pictures: tuple[str, ...]
    id_of: Callable[[Row, int], str]
    kind_of: Callable[[Row], str]
    answers: Callable[[Row], tuple[str, ...]]
    direct: Callable[[Row], str]
    look_again: Callable[[Row], str]
    picture_mark: re.Pattern[str] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, row: Row, style: Style) -> str:
        """The text that a model is asked, in one of the two styles."""
        return self.direct(row) if style == "direct" else self.look_again(row)


def get_published(name: str) -> PublishedSet:
    """The published set of a benchmark. Raises ConfigError for a name that is none."""
    if name not in BENCHMARKS:
        raise ConfigError(f"Benchmark {name!r} is unknown. There are: {', '.join(BENCHMARKS)}.")
    published: PublishedSet = import_module(f"models.benchmarks.{name}").PUBLISHED
    return published


def with_options(question: str, options: Sequence[str], *, form: str = "{letter}. {text}") -> str:
    """The question and one line per option, as in "A. brass"."""
    lines = [form.format(letter=letter, text=text) for letter, text in zip(ascii_uppercase, options)]
    return "\n".join([question, *lines])
