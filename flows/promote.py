"""Stage promote: the challenger becomes champion, or the gate says why not."""

from prefect import flow

from models.errors import ConfigError
from models.presets import load_preset
from tasks.registry import Verdict, promote_version
from tasks.stage import perform
from tasks.versions import CHALLENGER, find_version


@flow(name="promote")
async def promote(
    preset: str = "tiny",
    overrides: list[str] | None = None,
    version: str = CHALLENGER,
    parent: str = "",
) -> Verdict:
    """Judge a registered version, named by number or alias, by the preset's policy."""
    run = load_preset(preset, overrides or ())
    found = find_version(version)
    if found is None:
        raise ConfigError(
            f"There is no version {version!r} of the registered model. Run the pipeline first: vlm-r3 run"
        )
    verdict: Verdict = await perform(
        promote_version, label="promote", parent=parent, version=found, config=run.promotion
    )
    return verdict
