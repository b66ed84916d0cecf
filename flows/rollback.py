"""Flow rollback: a version that was champion before becomes champion again."""

from typing import Annotated

from prefect import flow

from flows.parameters import hint
from tasks.registry import Verdict, roll_back, version_named
from tasks.stage import perform
from tasks.versions import PREVIOUS

VersionName = Annotated[
    str, hint("A version that was champion before, by number or alias.", examples=["previous", "3"])
]
Reason = Annotated[str, hint("Why; kept in the history.")]


@flow(name="rollback")
async def rollback(version: VersionName = PREVIOUS, reason: Reason = "") -> Verdict:
    """Roll back to a version, named by number or alias; ``reason`` is kept in the history."""
    verdict: Verdict = await perform(
        roll_back, label="rollback", parent="", version=version_named(version), reason=reason
    )
    return verdict
