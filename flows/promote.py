"""Stage promote: the challenger becomes champion, or the gate says why not."""

from typing import Annotated

from prefect import flow

from flows.parameters import Overrides, Parent, PresetName, hint
from models.presets import load_preset
from tasks.deployed import hand_over
from tasks.events import tell_refusal
from tasks.registry import Verdict, promote_version, version_named
from tasks.stage import perform
from tasks.versions import CHALLENGER

VersionName = Annotated[
    str, hint("A version of the registered model vlm-r3, by number or alias.", examples=["challenger", "3"])
]


@flow(name="promote")
async def promote(
    preset: PresetName = "tiny",
    overrides: Overrides = None,
    version: VersionName = CHALLENGER,
    parent: Parent = "",
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
    if not verdict.is_champion:
        tell_refusal("promote", "\n".join(verdict.reasons))
    return await hand_over(verdict)
