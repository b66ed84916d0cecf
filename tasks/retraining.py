"""Whether the sources have anything new since the last version, and what training on it starts from."""

import json
from collections.abc import Sequence

from prefect import task
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from models.config import Preset
from models.errors import ArtifactError, RecordError
from models.source_versions import News, Versions, all_digest, changes
from models.vlir.versions import versions_of
from models.vlir_config import TeacherConfig
from tasks.evidence import read_evidence
from tasks.model_source import MODEL_NAME, has_registry
from tasks.settings import Settings
from tasks.shown import show_markdown
from tasks.versions import CHAMPION, Version, all_versions, find_version
from tasks.vlir_inputs import with_local_sources


class Plan(BaseModel):
    """What retraining found: the news, the changes of the preset that make use of it, and remarks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    news: News
    overrides: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([str(self.news), *self.remarks])


@task(name="look_for_news", persist_result=False)
async def look_for_news(preset: Preset, label: str = "look_for_news", parent: str = "") -> Plan:
    """Compare the sources of a preset, by digest, with what its versions were trained on.

    Nothing is trained, asked or tracked. Raises RecordError for sources that cannot be read, TrackingError
    when the registry does not answer.
    """
    settings = Settings.read()
    versions = _versions(preset, settings)
    now = versions_of(with_local_sources(preset.vlir, settings), seed=preset.seed)
    news, remarks = news_since(now, versions)
    plan = Plan(news=news, remarks=remarks)
    if news.is_news:
        champion = find_version(CHAMPION) if has_registry(settings) else None
        found = plan_for(preset, news, versions=versions, champion=champion)
        plan = found.model_copy(update={"remarks": (*remarks, *found.remarks)})
    get_run_logger().info("%s", plan)
    await show_markdown("retraining", f"{plan}\n", description="What is new in the sources")
    return plan


def _versions(preset: Preset, settings: Settings) -> list[Version]:
    """The versions that this preset made, newest first."""
    if not has_registry(settings):
        return []
    found = [each for each in all_versions() if each.tags.get("preset_name") == preset.name]
    return sorted(found, key=lambda version: int(version.number), reverse=True)


def news_since(now: Versions, versions: Sequence[Version]) -> tuple[News, tuple[str, ...]]:
    """What is new against ``versions``, newest first, and remarks about those whose evidence is not there."""
    digest = all_digest(now)
    same = next((each for each in versions if each.tags.get("sources_digest") == digest), None)
    if same is not None:
        return News(sources=dict(now), version=same.number, changes=()), ()
    remarks = []
    for version in versions:
        try:
            before = read_evidence(version).data.sources
        except (ArtifactError, RecordError) as error:
            remarks.append(f"Version {version.number} was left out: {error}")
            continue
        if before:
            found = changes(now, before)
            return News(sources=dict(now), version=version.number, changes=found), tuple(remarks)
    return News.first(now), tuple(remarks)


def plan_for(preset: Preset, news: News, *, versions: Sequence[Version], champion: Version | None) -> Plan:
    """What training on news starts from: the newest data that ``versions`` (newest first) have, and the
    teacher that the preset wants.
    """
    overrides, remarks = [], []
    earlier = _earlier_data(versions) if preset.retrain.keep_earlier and not preset.vlir.earlier else None
    if earlier is not None:
        number, place = earlier
        overrides.append(f"vlir.earlier={json.dumps(place)}")
        remarks.append(f"What did not change keeps its records of version {number}.")
    if preset.retrain.teacher == "champion":
        if champion is None:
            remarks.append("There is no champion yet: the preset's own teacher writes the rationales.")
        else:
            overrides.append(f"vlir.teacher={_champion_as_teacher(preset, champion)}")
            remarks.append(f"The champion, version {champion.number}, writes the rationales of new rows.")
    return Plan(news=news, overrides=tuple(overrides), remarks=tuple(remarks))


def _earlier_data(versions: Sequence[Version]) -> tuple[str, str] | None:
    """The newest version with data, and where these are; None when no version has any."""
    for version in versions:
        uri, digest = version.tags.get("data_uri", ""), version.tags.get("data_digest", "")
        if uri and digest:
            return version.number, f"{uri}#{digest}"
    return None


def _champion_as_teacher(preset: Preset, champion: Version) -> str:
    """Its number, not its alias: who is champion may change while the run lasts."""
    teacher = TeacherConfig(
        kind="vllm",
        model=f"models:/{MODEL_NAME}/{champion.number}",
        temperatures=preset.vlir.teacher.temperatures,
    )
    return teacher.model_dump_json()
