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
from models.run_config import VLIRRun
from models.trajectory import TurnError
from models.vlir.build import VLIRSummary, build_vlir

KINDS = {"read": 0.6, "add": 0.2, "where": 0.2}
CONFIG = VLIRConfig(num_questions=30, num_validation_questions=10, kinds=KINDS, num_samples=2, junk_rate=0.1)
ENGINE = load_preset("tiny").engine
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def preset_look() -> Look:
    return load_preset("tiny").look


def _build(
    out: Path, look: Look, *, seed: int = 0, config: VLIRConfig = CONFIG, progress=None
) -> VLIRSummary:
    request = VLIRRun(
        vlir=config,
        look=look,
        engine=ENGINE,
        seed=seed,
        rgrpo_questions=QuestionMix(num_questions=12, kinds=KINDS),
        evaluation_questions=QuestionMix(num_questions=8, kinds=KINDS),
    )
    work = out.with_name(out.name + ".shards")
    return build_vlir(request, out=out, work=work, progress=progress or (lambda done, total: None))


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
    # The held-out set is the same for every seed, and the drawn world has no faulty rows.
    assert set(_digests(out)) - differing == {"questions/test.parquet", "faults.jsonl"}


def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path, preset_look):
    # A set has another order in every process.
    look = preset_look.model_copy(update={"end_on": frozenset(TurnError)})
    _build(tmp_path / "here", look)
    program = (
        "import sys; from pathlib import Path; from models.config import *; "
        "from tests.unit.vlir.test_build import _build\n"
        "look, config = sys.argv[2:4]\n"
        "_build(Path(sys.argv[1]), Look.model_validate_json(look), "
        "config=VLIRConfig.model_validate_json(config))"
    )
    subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            str(tmp_path / "there"),
            look.model_dump_json(),
            CONFIG.model_dump_json(),
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
    assert len(records) == summary.train.counts.num_records > 10
    assert len(held_out) == summary.validation.counts.num_records > 0
    assert (
        len(records) + len(held_out) + len(rejected)
        == summary.train.counts.num_tries + summary.validation.counts.num_tries
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
    assert manifest["train"]["acceptance"] == summary.train.counts.num_records / 30
    assert (
        sum(manifest["train"]["rejected"].values())
        == summary.train.counts.num_tries - summary.train.counts.num_records
    )
    assert manifest["train"]["statistics"] == summary.train.statistics.to_dict()
    digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert digests == {name: digest for name, digest in _digests(out).items() if name != "manifest.json"}
    assert manifest["files"]["questions/test.parquet"]["num_rows"] == 8


def test_a_second_build_leaves_no_shard_of_the_first(tmp_path, preset_look):
    out = tmp_path / "set"
    _build(out, preset_look, config=CONFIG.model_copy(update={"shard_size": 8}))
    assert len(list((out / "records").iterdir())) == 4  # 30 questions in shards of 8
    _build(out, preset_look, config=CONFIG.model_copy(update={"num_questions": 6}))
    assert [path.name for path in (out / "records").iterdir()] == ["shard-00000.parquet"]


def test_progress_counts_every_question_once(tmp_path, preset_look):
    seen: list[tuple[int, int]] = []
    _build(tmp_path / "set", preset_look, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (70, 70)  # 30 + 10 asked, 12 + 10 + 8 written
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
