"""The history of the champion: one record per decision, appended and never changed, and what follows from it.

The last record says who is champion now and who was before. Every function here is plain: records in, records
or numbers of versions out.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from models.check import Check, Part

RECORD_VERSION = "history/1"


class Author(Part):
    """Who acts: a user of the operating system, and the flow run where there is one."""

    user: str
    flow_run: str = ""


Action = Literal["promoted", "refused", "rolled-back"]


class Record(Part):
    """One decision. ``version`` is what it is about, ``champion_before`` and ``champion`` who was champion
    before and is now, ``previous`` the champion to roll back to; empty means none. ``when`` is in UTC; ``id``
    tells two records apart that say the same.
    """

    schema_version: str = RECORD_VERSION
    number: int = Field(ge=1)
    id: str
    action: Action
    who: Author
    when: datetime
    version: str
    champion_before: str
    champion: str
    previous: str
    reason: str
    checks: tuple[Check, ...]


def next_record(
    last: Record | None,
    action: Action,
    version: str,
    *,
    who: Author,
    when: datetime,
    reason: str,
    checks: Sequence[Check],
) -> Record:
    """The record that follows ``last``: a refusal changes nothing, else ``version`` becomes champion."""
    champion, previous = (last.champion, last.previous) if last else ("", "")
    changes = action != "refused"
    return Record(
        number=last.number + 1 if last else 1,
        id=secrets.token_hex(8),
        action=action,
        who=who,
        when=when,
        version=version,
        champion_before=champion,
        champion=version if changes else champion,
        previous=champion if changes else previous,
        reason=reason,
        checks=tuple(checks),
    )


def champions(records: Sequence[Record]) -> frozenset[str]:
    """Every version that has ever been champion."""
    return frozenset(record.champion for record in records if record.champion)


def withdrawn(records: Sequence[Record]) -> frozenset[str]:
    """The versions that somebody rolled back from, and nobody back to since."""
    gone: set[str] = set()
    for record in records:
        if record.action == "rolled-back":
            gone.add(record.champion_before)
            gone.discard(record.champion)
    return frozenset(gone)


def line(record: Record) -> str:
    """A record for people, on one line."""
    before = record.champion_before or "none"
    change = f"champion {before}"
    if record.champion != record.champion_before:
        change += f" -> {record.champion}"
    run = f" (flow run {record.who.flow_run})" if record.who.flow_run else ""
    when = f"{record.when:%Y-%m-%d %H:%M:%SZ}"
    return (
        f"{record.number:4d}  {when}  {record.action:11}  version {record.version:4}  {change}  "
        f"by {record.who.user}{run}: {record.reason}"
    )
