"""Versions of sources: what a set was made from, by digest, and what is new since then."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.records import sha256

_SHOWN = 12  # characters of a digest, for people


class SourceVersion(BaseModel):
    """A source as it is: a digest over all of its rows in order, and how many there are and can be used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    num_rows: int
    num_usable: int


Versions = Mapping[str, SourceVersion]


class Change(BaseModel):
    """What is new about one source. ``num_more`` rows are there than before, or fewer when it is negative."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    kind: Literal["new", "larger", "changed", "gone"]
    num_rows: int
    num_more: int

    def __str__(self) -> str:
        if self.kind == "new":
            return f"{self.source} is new ({self.num_rows} rows)"
        if self.kind == "gone":
            return f"{self.source} is not among the sources any more ({-self.num_more} rows)"
        if self.kind == "larger":
            return f"{self.source} has {self.num_more} rows more ({self.num_rows})"
        return f"{self.source} has other rows ({self.num_rows}, before {self.num_rows - self.num_more})"


def versions_in(manifest: Mapping[str, Any]) -> dict[str, SourceVersion]:
    """The sources that a finished set was made from, as its manifest has them."""
    return {label: SourceVersion.model_validate(found) for label, found in manifest["sources"].items()}


def all_digest(versions: Versions) -> str:
    """One digest of all sources together; empty for none."""
    lines = [f"{label} {versions[label].digest}" for label in sorted(versions)]
    return sha256("\n".join(lines).encode()) if lines else ""


def changes(now: Versions, before: Versions) -> tuple[Change, ...]:
    """What is new, source by source; nothing when every digest is the same."""
    found = [change for label, version in now.items() if (change := _change(label, version, before))]
    gone = [
        Change(source=label, kind="gone", num_rows=0, num_more=-version.num_rows)
        for label, version in before.items()
        if label not in now
    ]
    return (*found, *gone)


class News(BaseModel):
    """What is new in the sources of a preset. ``version`` is the registered version that they are compared
    with: the one that was trained on exactly these sources, else the newest; empty when there is none that
    says what it was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: dict[str, SourceVersion]
    version: str
    changes: tuple[Change, ...]

    @classmethod
    def first(cls, now: Versions) -> "News":
        """Of sources that nothing was trained on so far: all is new."""
        return cls(sources=dict(now), version="", changes=changes(now, {}))

    @property
    def is_news(self) -> bool:
        """Whether there is anything to train on."""
        return bool(self.changes)

    @property
    def digest(self) -> str:
        """Of all sources as they are now."""
        return all_digest(self.sources)

    def __str__(self) -> str:
        rows = ", ".join(f"{label}: {found.num_rows} rows" for label, found in self.sources.items())
        what = f"{rows}; digest {self.digest[:_SHOWN]}"
        if not self.is_news:
            return f"Nothing new: version {self.version} was trained on exactly these sources ({what})."
        found = "; ".join(map(str, self.changes))
        since = f"since version {self.version}" if self.version else "(nothing was trained on it so far)"
        return f"New {since}: {found} ({what})."


def _change(label: str, now: SourceVersion, before: Versions) -> Change | None:
    known = before.get(label)
    if known is None:
        return Change(source=label, kind="new", num_rows=now.num_rows, num_more=now.num_rows)
    if known.digest == now.digest:
        return None
    more = now.num_rows - known.num_rows
    kind: Literal["larger", "changed"] = "larger" if more > 0 else "changed"
    return Change(source=label, kind=kind, num_rows=now.num_rows, num_more=more)
