"""The built folder: reproducible to the byte, complete, and without leaks."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import Look, QuestionMix, VLIRConfig
from models.presets import load_preset
from models.records import SCHEMA_VERSION, read_questions, read_records
from models.trajectory import TurnError
from models.vlir import build
from models.vlir.build import VLIRSummary, build_vlir

KINDS = {"read": 0.6, "add": 0.2, "where": 0.2}
CONFIG = VLIRConfig(num_questions=30, num_validation_questions=10, kinds=KINDS, num_samples=2, junk_rate=0.1)
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def preset_look() -> Look:
    return load_preset("tiny").look


def _build(
    out: Path, look: Look, *, seed: int = 0, config: VLIRConfig = CONFIG, progress=None
) -> VLIRSummary:
    return build_vlir(
        config,
        look,
        seed=seed,
        out=out,
        rgrpo_questions=QuestionMix(num_questions=12, kinds=KINDS),
        evaluation_questions=QuestionMix(num_questions=8, kinds=KINDS),
        progress=progress or (lambda done, total: None),
    )


def _digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory, preset_look) -> tuple[Path, VLIRSummary]:
    out = tmp_path_factory.mktemp("vlir")
    return out, _build(out, preset_look)


def test_two_runs_give_the_same_bytes_and_another_seed_does_not(built, tmp_path, preset_look):
    out, _ = built
    _build(tmp_path / "again", preset_look)
    assert _digests(tmp_path / "again") == _digests(out)
    _build(tmp_path / "other", preset_look, seed=1)
    differing = {
        name for name, digest in _digests(out).items() if _digests(tmp_path / "other")[name] != digest
    }
    # The held-out set is the same for every seed.
    assert set(_digests(out)) - differing == {"questions/test.parquet"}


def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path, preset_look):
    # A set has another order in every process.
    look = preset_look.model_copy(update={"end_on": frozenset(TurnError)})
    _build(tmp_path / "here", look)
    program = (
        "import sys; from pathlib import Path; from models.config import *; from models.vlir.build import *\n"
        "look, config, mixes = sys.argv[2:5]; import json\n"
        "mixes = [QuestionMix(**mix) for mix in json.loads(mixes)]\n"
        "build_vlir(VLIRConfig.model_validate_json(config), Look.model_validate_json(look), seed=0,"
        " out=Path(sys.argv[1]), rgrpo_questions=mixes[0], evaluation_questions=mixes[1])"
    )
    mixes = [{"num_questions": 12, "kinds": KINDS}, {"num_questions": 8, "kinds": KINDS}]
    subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            str(tmp_path / "there"),
            look.model_dump_json(),
            CONFIG.model_dump_json(),
            json.dumps(mixes),
        ],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert _digests(tmp_path / "there") == _digests(tmp_path / "here")


def test_the_folder_holds_what_the_stages_read(built):
    out, summary = built
    records, held_out = read_records(out / "records"), read_records(out / "validation")
    rejected = read_records(out / "rejected")
    assert len(records) == summary.train.num_records > 10
    assert len(held_out) == summary.validation.num_records > 0
    assert (
        len(records) + len(held_out) + len(rejected) == summary.train.num_tries + summary.validation.num_tries
    )
    assert all(record.reason == "" and record.question.split == "train" for record in records)
    assert all(record.question.split == "validation" for record in held_out)
    assert all(
        record.reason and {verdict.verdict for verdict in record.verdicts} != {"yes"} for record in rejected
    )
    for name, count in (("train", 12), ("validation", 10), ("test", 8)):
        questions = read_questions(out / "questions" / f"{name}.parquet")
        assert len(questions) == count
        assert {question.split for question in questions} == {name}


def test_no_picture_serves_twice(built):
    out, _ = built
    sets = [
        {record.question.image_sha256 for record in read_records(out / "records")},
        *(
            {question.image_sha256 for question in read_questions(out / "questions" / f"{name}.parquet")}
            for name in ("train", "validation", "test")
        ),
    ]
    assert sum(len(pictures) for pictures in sets) == len(set().union(*sets))


def test_the_manifest_describes_the_folder(built):
    out, summary = built
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["settings"]["vlir"] == CONFIG.model_dump(mode="json")
    assert manifest["source_mix"] == {"tiny-world": 1.0}
    assert manifest["train"]["acceptance"] == summary.train.num_records / 30
    assert sum(manifest["train"]["rejected"].values()) == summary.train.num_tries - summary.train.num_records
    assert manifest["train"]["statistics"] == summary.train.statistics.to_dict()
    digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert digests == {name: digest for name, digest in _digests(out).items() if name != "manifest.json"}
    assert manifest["files"]["questions/test.parquet"]["num_rows"] == 8


def test_a_second_build_leaves_no_shard_of_the_first(tmp_path, preset_look, monkeypatch):
    monkeypatch.setattr(build, "_QUESTIONS_PER_SHARD", 8)
    _build(tmp_path, preset_look)
    assert len(list((tmp_path / "records").iterdir())) == 4  # 30 questions in shards of 8
    _build(tmp_path, preset_look, config=CONFIG.model_copy(update={"num_questions": 6}))
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["shard-00000.parquet"]


def test_progress_counts_every_question_once(tmp_path, preset_look):
    seen: list[tuple[int, int]] = []
    _build(tmp_path, preset_look, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60)  # 30 + 10 + 12 + 8
    assert seen == sorted(seen)


def test_metrics_have_the_names_of_the_dictionary(built):
    _, summary = built
    metrics = summary.metrics()
    described = (REPOSITORY / "docs" / "metrics.md").read_text()
    for name in metrics:
        family = "vlir/rejected/" if "rejected/" in name else "vlir/judge/" if "judge/" in name else name
        assert f"`{family}" in described, name
    assert metrics["vlir/records"] / metrics["vlir/questions"] == metrics["vlir/acceptance"]
    rejected = sum(value for name, value in metrics.items() if name.startswith("vlir/rejected/"))
    assert rejected == metrics["vlir/tries"] - metrics["vlir/records"]
