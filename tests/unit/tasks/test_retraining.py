"""Whether there is anything new since the versions that there are, and what training on it starts from."""

import json
from pathlib import Path

import pytest

from models.evidence import DataEvidence, Kept
from models.presets import load_preset
from models.source_versions import News, SourceVersion, all_digest
from tasks.artifacts import ArtifactRef, FileStore
from tasks.retraining import news_since, plan_for
from tasks.versions import Version
from tests.evidence_examples import make_evidence

PRESET = load_preset("tiny")
SMALL = {"mine": SourceVersion(digest="s", num_rows=10, num_usable=10)}
LARGE = {"mine": SourceVersion(digest="l", num_rows=15, num_usable=15)}


@pytest.fixture
def store(work_dir: Path) -> FileStore:
    return FileStore(work_dir / "artifacts")


def version(store: FileStore, number: int, sources: dict[str, SourceVersion], **tags: str) -> Version:
    """A version whose evidence says that it was trained on these sources."""
    kept = Kept(uri="file:///data", sha256="d" * 64)
    data = DataEvidence(artifact=kept, num_records=3, licences=("x",), sources=sources)
    folder = store.root.parent / f"evidence-{number}"
    folder.mkdir(parents=True)
    make_evidence(data=data).write(folder)
    evidence = store.publish(folder, stage="register", kind="evidence")
    known = {
        "evidence_uri": evidence.uri,
        "evidence_digest": evidence.sha256,
        "sources_digest": all_digest(sources) or "none",
        "data_uri": f"file:///data/{number}",
        "data_digest": str(number) * 64,
    }
    model = ArtifactRef(uri="file:///m", sha256="m" * 64, kind="model")
    return Version(number=str(number), model=model, tags=known | tags)


def test_any_version_that_had_these_sources_is_enough(store: FileStore) -> None:
    versions = [version(store, 2, LARGE), version(store, 1, SMALL)]
    for sources, number in ((LARGE, "2"), (SMALL, "1")):
        news, remarks = news_since(sources, versions)
        assert not news.is_news
        assert (news.version, remarks) == (number, ())


def test_what_is_larger_is_compared_with_the_newest_version(store: FileStore) -> None:
    news, _ = news_since(LARGE, [version(store, 1, SMALL)])
    assert news.is_news
    assert news.version == "1"
    assert [str(change) for change in news.changes] == ["mine has 5 rows more (15)"]


def test_versions_that_do_not_say_what_they_were_trained_on_are_left_out(store: FileStore) -> None:
    old = version(store, 3, {})
    damaged = version(store, 2, LARGE, evidence_digest="0" * 64, sources_digest="other")
    news, remarks = news_since(LARGE, [old, damaged, version(store, 1, SMALL)])
    assert news.version == "1"
    assert len(remarks) == 1
    assert remarks[0].startswith("Version 2 was left out: ")
    assert news_since(LARGE, [old])[0] == News.first(LARGE)
    assert news_since(LARGE, [])[0] == News.first(LARGE)


def test_it_goes_on_from_the_newest_data(store: FileStore) -> None:
    bare = version(store, 3, {}, data_uri="")
    plan = plan_for(PRESET, News.first(LARGE), versions=[bare, version(store, 2, SMALL)], champion=None)
    assert plan.overrides == (f'vlir.earlier="file:///data/2#{"2" * 64}"',)
    assert plan.remarks == ("What did not change keeps its records of version 2.",)
    changed = load_preset("tiny", [*plan.overrides])
    assert changed.vlir.earlier == f"file:///data/2#{'2' * 64}"


@pytest.mark.parametrize("override", ["retrain.keep_earlier=false", "vlir.earlier=/mine"])
def test_somebody_else_may_decide_what_it_goes_on_from(store: FileStore, override: str) -> None:
    preset = load_preset("tiny", [override])
    plan = plan_for(preset, News.first(LARGE), versions=[version(store, 2, SMALL)], champion=None)
    assert plan.overrides == ()


def test_the_champion_teaches_by_its_number(store: FileStore) -> None:
    preset = load_preset("tiny", ["retrain.teacher=champion", "vlir.teacher={temperatures: [0.7]}"])
    champion = version(store, 7, SMALL)
    plan = plan_for(preset, News.first(LARGE), versions=[], champion=champion)
    teacher = load_preset("tiny", plan.overrides).vlir.teacher
    assert (teacher.kind, teacher.model, teacher.temperatures) == ("vllm", "models:/vlm-r3/7", (0.7,))
    assert "version 7, writes the rationales" in str(plan)
    nobody = plan_for(preset, News.first(LARGE), versions=[], champion=None)
    assert nobody.overrides == ()
    assert "There is no champion yet" in str(nobody)


def test_the_plan_can_be_kept_as_json(store: FileStore) -> None:
    plan = plan_for(PRESET, News.first(LARGE), versions=[version(store, 2, SMALL)], champion=None)
    assert type(plan).model_validate(json.loads(plan.model_dump_json())) == plan
