"""What a row of a source must be, and the named fault of a row that is not."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from models.answers import normalise
from models.protocol import SPECIAL_TOKEN
from models.vlir.sources.base import Fault, FaultKind, Sample

Row = dict[str, Any]


class BadRow(Exception):
    """A row cannot be used; it costs no other row."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class SeenIds:
    """Which ids came before, as 64 bits each: a million of them take some 100 MB."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, id: str) -> bool:
        """Note an id; False when it was there before."""
        before = len(self._seen)
        self._seen.add(key_of(id))
        return len(self._seen) > before


def key_of(*parts: str) -> int:
    """64 bits that stand for some texts in an index."""
    return int.from_bytes(_digest(parts)[:8], "little")


def content_id(*parts: str) -> str:
    """An id for a row that has none of its own: the same texts give the same id."""
    return _digest(parts)[:8].hex()


def samples(
    rows: Iterable[tuple[int, Row | BadRow]],
    *,
    start: int,
    id_of: Callable[[Row], str],
    sample_of: Callable[[int, str, Row], Sample],
) -> Iterator[Sample | Fault]:
    """A sample or a fault for every row from ``start`` on.

    Earlier rows must be given, too (their ids alone are looked at): of two rows with one id the first keeps
    it, usable or not, wherever reading starts.
    """
    seen = SeenIds()
    for number, row in rows:
        id = ""
        try:
            if isinstance(row, BadRow):
                raise row
            id = id_of(row)
            is_new = seen.add(id)
            if number < start:
                continue
            if not is_new:
                raise BadRow(FaultKind.DUPLICATE_ID, f"id {id!r} occurs in an earlier row")
            yield _without_special_tokens(sample_of(number, id, row))
        except BadRow as bad:
            if number >= start:
                yield Fault(number, id, bad.kind, bad.detail)


def _without_special_tokens(sample: Sample) -> Sample:
    """The sample. A question that holds such a token shows the model a picture too many, or ends its turn."""
    if found := SPECIAL_TOKEN.search(sample.text):
        raise BadRow(FaultKind.BAD_ROW, f"the question holds the special token {found[0]!r}; leave it out")
    return sample


def text_of(row: Row, name: str) -> str:
    """A text without blanks at its ends; empty when the field is missing or null."""
    return checked_text(row.get(name), name)


def checked_text(value: object, name: str) -> str:
    """The same of a value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(FaultKind.BAD_ROW, f"{name} is {shown(value)}; it must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(FaultKind.NOT_UTF8, f"{name} holds half a character ({error.reason})") from error
    return value.strip()


def question_of(row: Row, name: str = "question") -> str:
    """A question that is there."""
    text = text_of(row, name)
    if not text:
        raise BadRow(FaultKind.NO_QUESTION, f"{name} is empty or missing")
    return text


def answers_of(values: Sequence[object], name: str) -> tuple[str, ...]:
    """All gold answers in their order, equal ones included, blank ones left out; one at least is usable."""
    answers = tuple(text for value in values if (text := checked_text(value, name)))
    if not any(normalise(answer) for answer in answers):
        raise BadRow(
            FaultKind.NO_ANSWER,
            f"{name} holds no answer that anything could match: {shown(list(values))}",
        )
    return answers


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _digest(parts: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
