"""A manifest that grew, lost and changed rows: the set goes on from the earlier one, with a real teacher."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.config import EngineConfig, FilterJudge, QuestionMix, SourceConfig, TeacherConfig, VLIRConfig
from models.errors import RecordError
from models.presets import load_preset
from models.records import RECORD_SCHEMA, read_rows
from models.run_config import VLIRRun
from models.source_versions import changes, versions_in
from models.vlir.build import build_vlir
from models.vlir.checks import read_manifest
from models.vlir.versions import versions_of
from tests.benchmark_examples import file_name, schema_of, small, write
from tests.simulated_teacher import Simulated, teaching

pytestmark = pytest.mark.integration

PRESET = load_preset("tiny")
NUM_ROWS = 24


def rows(count: int) -> dict[str, dict[str, Any]]:
    """Questions to which the simulated teacher knows the answer; every sixth has another one."""
    return {
        str(number): {
            "id": str(number),
            "image": f"{number}.png",
            "question": "what code?",
            "answer": "Z9" if number % 6 == 0 else "K7",
            "split": "validation" if number % 8 == 1 else "train",
        }
        for number in range(count)
    }


def write_manifest(folder: Path, lines: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for line in lines.values():
        number = int(line["image"].partition(".")[0])
        Image.new("RGB", (112, 112), (number, 255 - number, 7)).save(folder / line["image"])
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    return path


def request_of(manifest: Path, teacher: Simulated, **changes: Any) -> VLIRRun:
    engine = PRESET.engine.model_dump() | {
        **{"kind": "http", "endpoint": teacher.url, "served_model": "simulated"},
        **{"max_num_seqs": 8, "backoff_seconds": 0.05},
    }
    nobody = FilterJudge(kind="none")
    values = {
        "sources": (SourceConfig(kind="manifest", data=str(manifest), licence="mine"),),
        "teacher": TeacherConfig(kind="http", engine=EngineConfig.model_validate(engine), prompts="paper"),
        **{"semantic_unit": nobody, "coherence": nobody, "shard_size": 7, "num_samples": 2},
    }
    return VLIRRun(
        vlir=VLIRConfig.model_validate({**values, **changes}),
        look=PRESET.look,
        engine=PRESET.engine,
        seed=0,
        rgrpo_questions=QuestionMix(num_questions=5, kinds={}),
        evaluation_questions=QuestionMix(num_questions=5, kinds={}),
    )


def build(out: Path, request: VLIRRun) -> None:
    build_vlir(request, out=out, work=out.with_name(f"{out.name}.shards"))


def accepted(folder: Path) -> dict[str, dict[str, Any]]:
    parts = (folder / "records", folder / "validation")
    return {row["id"]: row for part in parts for row in read_rows(part, RECORD_SCHEMA)}


def num_requests(teacher: Simulated) -> int:
    return sum(teacher.counts().values())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    manifest = write_manifest(folder / "mine", rows(NUM_ROWS))
    with teaching(0.0) as teacher:
        build(folder / "set", request_of(manifest, teacher))
    return folder / "set"


def test_only_rows_that_are_new_or_changed_are_asked(first: Path, tmp_path: Path) -> None:
    lines = rows(NUM_ROWS + 6)
    del lines["2"]
    lines["3"]["question"] = "which code?"
    lines["4"]["image"] = "200.png"  # another picture
    lines["5"]["answer"] = "K8"  # what the teacher says is wrong now
    manifest = write_manifest(tmp_path / "mine", lines)
    with teaching(0.0) as teacher:
        request = request_of(manifest, teacher, earlier=str(first))
        build(tmp_path / "set", request)
        asked = num_requests(teacher)
        build(tmp_path / "again", request)
        assert num_requests(teacher) == 2 * asked
        afresh = request.model_copy(update={"vlir": request.vlir.model_copy(update={"earlier": ""})})
        build(tmp_path / "afresh", afresh)
        everything = num_requests(teacher) - 2 * asked
    # Two requests per try. Of 24 rows 20 are as they were, 3 changed, 1 is gone, 6 are new; of the 9 that are
    # asked 5 and 24 have a wrong answer, which takes a second try. Of all 29 these are 0, 5, 6, 12, 18, 24.
    assert asked == 2 * (7 + 2 * 2)
    assert everything == 2 * (23 + 2 * 6)
    before, after = accepted(first), accepted(tmp_path / "set")
    changed = {"manifest-2", "manifest-3", "manifest-4", "manifest-5"}
    assert {id: after[id] for id in before.keys() - changed} == {
        id: row for id, row in before.items() if id not in changed
    }
    assert "manifest-2" not in after
    assert "manifest-5" not in after
    assert after["manifest-3"]["text"] == "which code?"
    assert after["manifest-4"]["image_sha256"] != before["manifest-4"]["image_sha256"]
    for name in ("records", "validation", "rejected"):
        for file in (tmp_path / "set" / name).iterdir():
            assert file.read_bytes() == (tmp_path / "again" / name / file.name).read_bytes()
            # The teacher says always the same, so a set that grew is the set made in one go.
            assert file.read_bytes() == (tmp_path / "afresh" / name / file.name).read_bytes()
    found, since = read_manifest(tmp_path / "set"), read_manifest(first)
    assert found["earlier"]["kept"]["train"]["records"] + found["earlier"]["kept"]["validation"][
        "records"
    ] == (len(before.keys() - changed))
    (change,) = changes(versions_of(request.vlir, seed=0), versions_in(since))
    assert (change.kind, change.num_rows, change.num_more) == ("larger", 29, 5)
    assert versions_of(request.vlir, seed=0) == versions_in(found)


def test_a_row_that_is_held_out_by_now_is_an_error_although_it_was_accepted(
    first: Path, tmp_path: Path
) -> None:
    published, split, examples = small("mme")
    buffer = io.BytesIO()
    Image.new("RGB", (112, 112), (9, 246, 7)).save(buffer, format="PNG")
    leaked = {**examples[0], "image": {"bytes": buffer.getvalue(), "path": "x.png"}}
    write(tmp_path / "mme" / file_name(split), [leaked, *examples[1:]], schema_of(published))
    manifest = write_manifest(tmp_path / "mine", rows(NUM_ROWS))
    assert "manifest-9" in accepted(first)
    with teaching(0.0) as teacher:
        request = request_of(manifest, teacher, earlier=str(first), held_out={"mme": str(tmp_path / "mme")})
        with pytest.raises(RecordError, match=r"row 9 \(manifest-9\)"):
            build(tmp_path / "set", request)
