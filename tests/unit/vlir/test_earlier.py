"""A set that goes on from an earlier one: nobody is asked twice, and what was kept is what it was."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.config import QuestionMix, VLIRConfig
from models.errors import RecordError
from models.presets import load_preset
from models.records import RECORD_SCHEMA, rationale_row, read_records, read_rows
from models.run_config import VLIRRun
from models.source_versions import versions_in
from models.vlir.build import VLIRSummary, build_vlir
from models.vlir.earlier import EarlierSet
from models.vlir.versions import versions_of

PRESET = load_preset("tiny")
KINDS = {"read": 0.6, "add": 0.2, "where": 0.2}
CONFIG = VLIRConfig(
    num_questions=30, num_validation_questions=6, kinds=KINDS, num_samples=2, junk_rate=0.4, shard_size=8
)


def request_of(*, seed: int = 0, **changes: object) -> VLIRRun:
    return VLIRRun(
        vlir=CONFIG.model_copy(update=changes),
        look=PRESET.look,
        engine=PRESET.engine,
        seed=seed,
        rgrpo_questions=QuestionMix(num_questions=4, kinds=KINDS),
        evaluation_questions=QuestionMix(num_questions=4, kinds=KINDS),
    )


def build(out: Path, **changes: object) -> VLIRSummary:
    request = request_of(**changes)
    return build_vlir(request, out=out, work=out.with_name(f"{out.name}.shards"))


def accepted(folder: Path) -> dict[str, dict]:
    """Every accepted row of both splits as it is stored, by its id."""
    parts = (folder / "records", folder / "validation")
    return {row["id"]: row for part in parts for row in read_rows(part, RECORD_SCHEMA)}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "set"
    build(out)
    return out


@pytest.fixture(scope="module")
def grown(first: Path) -> tuple[Path, VLIRSummary]:
    out = first.with_name("grown")
    return out, build(out, earlier=str(first), num_questions=50, num_validation_questions=9)


def test_what_was_accepted_is_kept_to_the_letter(first: Path, grown: tuple[Path, VLIRSummary]) -> None:
    before, after = accepted(first), accepted(grown[0])
    assert len(before) > 15
    assert {id: after[id] for id in before} == before
    assert len(after) > len(before)


def test_only_new_questions_are_asked(first: Path, grown: tuple[Path, VLIRSummary]) -> None:
    out, summary = grown
    settled = {record.question.id for record in read_records(first / "rejected")} | accepted(first).keys()
    assert len(settled) == 36
    assert summary.train.counts.kept.total() == 30
    assert summary.train.counts.num_questions == 50
    assert summary.train.counts.sampled_tokens > 0
    # With nothing new nothing is sampled.
    alone = build(out.with_name("alone"), earlier=str(first))
    assert (alone.train.counts.sampled_tokens, alone.validation.counts.sampled_tokens) == (0, 0)


def test_a_set_that_did_not_grow_is_the_same_set(first: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", earlier=str(first))
    differing = {
        name for name, digest in digests(tmp_path / "again").items() if digest != digests(first).get(name)
    }
    assert differing == {"manifest.json"}, "it names the set that it goes on from"


def test_the_same_growth_gives_the_same_bytes_and_may_go_on(
    first: Path, grown: tuple[Path, VLIRSummary], tmp_path: Path
) -> None:
    out, _ = grown
    changes = {"earlier": str(first), "num_questions": 50, "num_validation_questions": 9}
    build(tmp_path / "again", **changes)
    assert digests(tmp_path / "again") == digests(out)
    third = build(tmp_path / "third", **{**changes, "earlier": str(out), "num_questions": 60})
    assert third.train.counts.kept.total() == 50
    manifest = json.loads((tmp_path / "third" / "manifest.json").read_text())
    assert manifest["sources"]["tiny-world"]["draws"]["train"] == [30, 20, 10]


def test_the_manifest_says_what_was_kept_and_of_which_set(
    first: Path, grown: tuple[Path, VLIRSummary]
) -> None:
    out, summary = grown
    manifest = json.loads((out / "manifest.json").read_text())
    found = manifest["earlier"]
    assert found["digest"] == hashlib.sha256((first / "manifest.json").read_bytes()).hexdigest()
    num_accepted = len(read_records(first / "records"))
    assert found["kept"]["train"] == {"records": num_accepted, "rejected": 30 - num_accepted}
    assert summary.metrics()["vlir/kept_records"] == len(accepted(first))
    assert "earlier" not in json.loads((first / "manifest.json").read_text())
    request = request_of(num_questions=50, num_validation_questions=9)
    assert versions_in(manifest) == versions_of(request.vlir, seed=0)
    assert versions_in(manifest) != versions_in(json.loads((first / "manifest.json").read_text()))


def test_what_stayed_rejected_is_asked_again_on_request(first: Path, tmp_path: Path) -> None:
    rejected = {record.question.id for record in read_records(first / "rejected")} - accepted(first).keys()
    assert rejected
    summary = build(tmp_path / "again", earlier=str(first), ask_rejected_again=True)
    both = summary.train.counts.kept + summary.validation.counts.kept
    assert both == {"records": len(accepted(first))}
    tokens = summary.train.counts.sampled_tokens + summary.validation.counts.sampled_tokens
    assert tokens > 0


@pytest.mark.parametrize(
    "change",
    [
        {"answers": ("other",)},
        {"text": "other"},
        {"image_sha256": "0" * 64},
        {"gold_boxes": ()},
        {"source": "other"},
        {"id": "other"},
    ],
)
def test_a_changed_row_is_another_question(first: Path, change: dict[str, Any]) -> None:
    earlier = EarlierSet(first, PRESET.look)
    record = next(each for each in read_records(first / "records") if each.question.gold_boxes)
    assert earlier.tries_of(record.question)[-1].rationale == rationale_row(record)
    assert earlier.tries_of(replace(record.question, **change)) == ()
    assert earlier.knows(record.question.source, record.question.id)
    assert not earlier.knows(record.question.source, "another")
    assert earlier.tries_of(replace(record.question, licence="other"))


def test_another_seed_keeps_nothing_of_the_drawn_world(first: Path, tmp_path: Path) -> None:
    summary = build(tmp_path / "other", earlier=str(first), seed=1)
    assert summary.train.counts.kept.total() == 0


def test_a_shard_of_another_history_is_not_taken_for_this_one(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    build(out, num_samples=1)
    alone = accepted(out)
    build(out, num_samples=1, earlier=str(first))
    assert accepted(out) == accepted(first) != alone


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": "vlir/0"}, "schema version 'vlir/0'; this program knows 'vlir/1'"),
        ({"look": {"max_pixels": 50176}}, "look.max_pixels 50176 and now 12544"),
        ({"files": {"records/shard-09.parquet": {}}}, "lacks records/shard-09.parquet"),
    ],
)
def test_a_set_that_cannot_be_gone_on_from_is_refused(
    first: Path, tmp_path: Path, change: dict[str, dict], says: str
) -> None:
    manifest = json.loads((first / "manifest.json").read_text())
    if "look" in change:
        manifest["settings"]["look"] |= change["look"]
    else:
        manifest |= change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match=says):
        EarlierSet(tmp_path, PRESET.look)


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"has no manifest\.json"):
        build(tmp_path / "set", earlier=str(tmp_path))
