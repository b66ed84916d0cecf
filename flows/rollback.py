"""Flow rollback: a version that was champion before becomes champion again."""

from prefect import flow

from tasks.registry import Verdict, roll_back, version_named
from tasks.stage import perform
from tasks.versions import PREVIOUS


@flow(name="rollback")
async def rollback(version: str = PREVIOUS, reason: str = "") -> Verdict:
    """Roll back to a version, named by number or alias; ``reason`` is kept in the history."""
    verdict: Verdict = await perform(
        roll_back, label="rollback", parent="", version=version_named(version), reason=reason
    )
    return verdict
