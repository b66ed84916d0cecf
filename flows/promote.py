"""Stage promote: the challenger becomes champion, or the gate says why not."""

from prefect import flow

from models.presets import load_preset
from tasks.registry import Verdict, promote_version, version_named
from tasks.stage import perform
from tasks.versions import CHALLENGER


@flow(name="promote")
async def promote(
    preset: str = "tiny",
    overrides: list[str] | None = None,
    version: str = CHALLENGER,
    parent: str = "",
) -> Verdict:
    """Judge a registered version, named by number or alias, by the preset's policy."""
    run = load_preset(preset, overrides or ())
    verdict: Verdict = await perform(
        promote_version,
        label="promote",
        parent=parent,
        version=version_named(version),
        config=run.promotion,
    )
    return verdict
