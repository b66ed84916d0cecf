"""A build from one's own manifest, with a teacher over HTTP: interrupted, it asks only what is left."""

import hashlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from models.config import EngineConfig, FilterJudge, QuestionMix, SourceConfig, TeacherConfig, VLIRConfig
from models.presets import load_preset
from models.records import read_questions, read_records
from models.run_config import VLIRRun
from models.rundir import RunDir
from tests.simulated_teacher import PROMPT_TOKENS, Simulated, teaching

pytestmark = pytest.mark.integration

NUM_ROWS = 150
NUM_CONNECTIONS = 16
PRESET = load_preset("tiny")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions to which the simulated teacher knows the answer; every fifth has another one."""
    folder = tmp_path_factory.mktemp("mine")
    lines = []
    for number in range(NUM_ROWS):
        Image.new("RGB", (112, 112), (number, 255 - number, 7)).save(folder / f"{number}.png")
        answer = "Z9" if number % 5 == 0 else "K7"
        row = {"id": str(number), "image": f"{number}.png", "question": "what code?", "answer": answer}
        lines.append(json.dumps(row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_run(
    folder: Path, manifest: Path, endpoint: str, *, num_connections: int = NUM_CONNECTIONS, **changes: object
) -> RunDir:
    """A run directory that asks for a build."""
    engine = PRESET.engine.model_dump() | {
        "kind": "http",
        "endpoint": endpoint,
        "served_model": "simulated",
        "max_num_seqs": num_connections,
        "backoff_seconds": 0.05,
    }
    nobody = FilterJudge(kind="none")
    values = {
        "sources": (SourceConfig(kind="manifest", data=str(manifest)),),
        "teacher": TeacherConfig(kind="http", engine=EngineConfig.model_validate(engine), prompts="paper"),
        "semantic_unit": nobody,
        "coherence": nobody,
        "shard_size": 20,
        "num_samples": 2,
    }
    request = VLIRRun(
        vlir=VLIRConfig.model_validate({**values, **changes}),
        look=PRESET.look,
        engine=PRESET.engine,
        seed=0,
        rgrpo_questions=QuestionMix(num_questions=40, kinds={}),
        evaluation_questions=QuestionMix(num_questions=10, kinds={}),
    )
    return RunDir.create(folder, request)


def build(run: RunDir, **options: object) -> psutil.Popen:
    command = [sys.executable, "-m", "models.vlir.build", str(run.path)]
    return psutil.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)


def digests(run: RunDir) -> dict[str, str]:
    folder = run.path / "vlir"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def test_a_killed_build_asks_only_what_is_missing_and_gives_the_same_bytes(
    manifest: Path, tmp_path: Path
) -> None:
    with teaching(0.02) as whole:
        first = make_run(tmp_path / "whole", manifest, whole.url)
        assert build(first).wait() == 0
        needed = _num_requests(whole)
        assert build(first).wait() == 0
        assert _num_requests(whole) == needed, "a finished build asks nothing"
    with teaching(0.1) as broken:
        second = make_run(tmp_path / "broken", manifest, broken.url)
        for least in (120, 260):
            child = build(second)
            _wait_for(broken, least)
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert build(second).wait() == 0
        # What was in flight, or waited for its judges, when it was killed is lost; what was settled is not.
        lost = 2 * (NUM_CONNECTIONS + NUM_CONNECTIONS) * 2
        assert _num_requests(broken) <= needed + lost < needed + 260
    assert digests(second) == digests(first)


def test_a_process_that_asks_the_teacher_and_is_lost_loses_only_what_it_held(
    manifest: Path, tmp_path: Path
) -> None:
    with teaching(0.02) as whole:
        first = make_run(tmp_path / "whole", manifest, whole.url)
        assert build(first).wait() == 0
        needed = _num_requests(whole)
    with teaching(0.1) as broken:
        second = make_run(tmp_path / "broken", manifest, broken.url, num_connections=2 * NUM_CONNECTIONS)
        child = build(second)
        _wait_for(broken, 120)
        workers = _workers(child)
        assert len(workers) == min(2, len(os.sched_getaffinity(0)))
        workers[0].kill()
        assert child.wait() == 1
        assert "exit code -9" in second.result().reason
        assert "run the stage again" in second.result().reason
        assert not any(worker.is_running() for worker in workers)
        assert build(second).wait() == 0
        lost = 2 * (2 * NUM_CONNECTIONS + 2 * NUM_CONNECTIONS)
        assert _num_requests(broken) <= needed + lost
    assert digests(second) == digests(first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_build_leaves_no_process(manifest: Path, tmp_path: Path, number: signal.Signals) -> None:
    with teaching(0.3) as teacher:
        run = make_run(tmp_path / "run", manifest, teacher.url, num_connections=2 * NUM_CONNECTIONS)
        child = build(run)
        _wait_for(teacher, 30)
        workers = _workers(child)
        assert workers
        child.send_signal(number)
        child.wait(timeout=60)
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
    if number == signal.SIGTERM:
        assert run.result().status == "cancelled"


def test_rows_that_are_added_cost_nothing_but_themselves(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = manifest.read_text().splitlines()
    for number in range(50):
        (folder / f"{number}.png").write_bytes((manifest.parent / f"{number}.png").read_bytes())
    grown = folder / "manifest.jsonl"
    grown.write_text("\n".join(lines[:40]) + "\n")
    with teaching(0.0) as teacher:
        run = make_run(tmp_path / "run", grown, teacher.url)
        assert build(run).wait() == 0
        before = run.result().metrics["vlir/teacher/requests"]
        grown.write_text("\n".join(lines[:50]) + "\n")
        assert build(run).wait() == 0
        afresh = make_run(tmp_path / "afresh", grown, teacher.url)
        assert build(afresh).wait() == 0
    after = run.result().metrics["vlir/teacher/requests"]
    assert before < after <= before + 10 * 2 * 2
    assert afresh.result().metrics["vlir/teacher/requests"] == after
    assert digests(run) == digests(afresh)


@pytest.mark.parametrize("shard_size", [1, 7])
def test_shards_of_any_size_with_one_connection_come_to_an_end(
    manifest: Path, tmp_path: Path, shard_size: int
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = manifest.read_text().splitlines()[:30]
    for number in range(30):
        (folder / f"{number}.png").write_bytes((manifest.parent / f"{number}.png").read_bytes())
    lines[1:1] = ["{no json"] * 20  # settled at once, in shards of their own
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    with teaching(0.0) as teacher:
        run = make_run(
            tmp_path / "run",
            folder / "manifest.jsonl",
            teacher.url,
            num_connections=1,
            shard_size=shard_size,
        )
        child = build(run)
        assert child.wait(timeout=120) == 0
    metrics = run.result().metrics
    assert metrics["vlir/fault/bad_row"] == 20
    assert metrics["vlir/questions"] + metrics["vlir/evaluation_questions"] >= 25


def test_every_question_has_a_record_or_every_try_with_its_reason(manifest: Path, tmp_path: Path) -> None:
    with teaching(0.0) as teacher:
        run = make_run(tmp_path / "run", manifest, teacher.url)
        assert build(run).wait() == 0
    folder = run.path / "vlir"
    accepted = [*read_records(folder / "records"), *read_records(folder / "validation")]
    rejected = read_records(folder / "rejected")
    assert all(int(record.question.id.rpartition("-")[2]) % 5 for record in accepted)
    wrong = {record.question.id for record in rejected}
    assert {record.reason for record in rejected} == {"wrong_answer"}
    assert len(rejected) == 2 * len(wrong)
    summary = json.loads((folder / "manifest.json").read_text())
    asked = summary["train"]["num_questions"] + summary["validation"]["num_questions"]
    assert len(accepted) + len(wrong) == asked
    assert {record.prompt_id for record in accepted} == {"listing-1"}
    assert {record.teacher for record in accepted} == {"simulated"}
    metrics = run.result().metrics
    assert metrics["vlir/teacher/requests"] == 2 * (len(accepted) + len(rejected))
    assert metrics["vlir/teacher/prompt_tokens"] == PROMPT_TOKENS * metrics["vlir/teacher/requests"]
    assert metrics["vlir/teacher_prompt_tokens"] == metrics["vlir/teacher/prompt_tokens"]


def test_a_teacher_that_is_gone_stops_the_build_and_its_return_finishes_it(
    manifest: Path, tmp_path: Path
) -> None:
    with teaching(0.0, faults=["500"]) as teacher:
        run = make_run(tmp_path / "run", manifest, teacher.url)
        log = tmp_path / "log"
        with log.open("wb") as out:
            assert build(run, stdout=out, stderr=out).wait() == 1
        assert "more than vlir.max_failed_share" in run.result().reason
        assert "run the stage again" in run.result().reason


def test_bad_rows_have_a_name_each_and_cost_no_other_row(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    good = manifest.read_text().splitlines()[1:5]
    for line in good:
        name = json.loads(line)["image"]
        (folder / name).write_bytes((manifest.parent / name).read_bytes())
    bad = _write_bad_rows(folder)
    lines = [line.encode() for line in good[:2]] + list(bad.values()) + [line.encode() for line in good[2:]]
    (folder / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with teaching(0.0) as teacher:
        run = make_run(tmp_path / "run", folder / "manifest.jsonl", teacher.url, test_share=0.5)
        assert build(run).wait() == 0
    out = run.path / "vlir"
    faults = [json.loads(line) for line in (out / "faults.jsonl").read_text().splitlines()]
    found = {list(bad)[fault["row"] - 2]: fault["kind"] for fault in faults}
    assert found == {name: name.partition(":")[0] for name in bad}
    # Details name what the row says (a long path cut off), and no other folder of this machine.
    said = {fault["row"]: list(bad.values())[fault["row"] - 2] for fault in faults}
    here = str(tmp_path)
    assert all(fault["detail"] for fault in faults)
    assert not [one for one in faults if here in one["detail"] and here.encode() not in said[one["row"]]]
    answered = {record.question.id for record in read_records(out / "records")}
    answered |= {record.question.id for record in read_records(out / "validation")}
    answered |= {question.id for question in read_questions(out / "questions" / "test.parquet")}
    assert answered == {f"manifest-{json.loads(line)['id']}" for line in good}


def test_unusual_pictures_are_made_usual_and_counted(manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    plain = Image.new("RGB", (112, 56), (200, 10, 10))
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=turned)
    Image.new("CMYK", (112, 112), (10, 200, 0, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((112, 112), 40_000, dtype=np.uint16)).save(folder / "deep.png")
    frames = [Image.new("RGB", (112, 112), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    names = ("turned.jpg", "cmyk.jpg", "deep.png", "moving.gif")
    rows = ({"id": name, "image": name, "question": "what code?", "answer": "K7"} for name in names)
    (folder / "manifest.jsonl").write_text(
        "".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows)
    )
    with teaching(0.0) as teacher:
        run = make_run(tmp_path / "run", folder / "manifest.jsonl", teacher.url)
        assert build(run).wait() == 0
    records = {record.question.id: record.question for record in read_records(run.path / "vlir" / "records")}
    assert set(records) == {f"manifest-{name}" for name in names}
    turned_question = records["manifest-turned.jpg"]
    assert turned_question.image().size == (turned_question.width, turned_question.height) == (56, 112)
    assert records["manifest-deep.png"].image().getpixel((0, 0))[0] == 40_000 >> 8
    red, green, blue = records["manifest-moving.gif"].image().getpixel((5, 5))
    assert red > 200 > max(green, blue)
    changes = json.loads((run.path / "vlir" / "manifest.json").read_text())["train"]["picture_changes"]
    assert len(changes) >= 4
    assert set(changes.values()) == {1}


def _write_bad_rows(folder: Path) -> dict[str, bytes]:
    """Rows that cannot be used, by their kind of fault, with the pictures that some of them name."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (30_000, 30_000)).save(folder / "bomb.png")
    Image.new("RGB", (3000, 4)).save(folder / "long.png")
    Image.new("RGB", (64, 64)).save(folder / "plain.png")
    Image.new("RGB", (64, 64)).save(folder.parent / "outside.png")

    def row(**fields: object) -> bytes:
        usual = {"image": "plain.png", "question": "what code?", "answer": "K7"}
        return json.dumps(usual | fields).encode()

    return {
        "missing_image": row(image="nowhere.png"),
        "truncated_image": row(image="cut.jpg"),
        "unreadable_image": row(image="text.png"),
        "unreadable_image:empty": row(image="empty.png"),
        "too_large_image": row(image="bomb.png"),
        "unusable_size": row(image="long.png"),
        "outside_folder": row(image="../outside.png"),
        "outside_folder:absolute": row(image=str(folder.parent / "outside.png")),
        "bad_address": row(image="https://example.org/a.png"),
        "not_utf8": row().replace(b"what code", b"what \xff code"),
        "no_answer": row(answer="  "),
        "no_question": row(question=""),
        "bad_box": row(box=[50, 50, 10, 10]),
        "bad_row": b"{not json",
        "bad_row:list": b"[1, 2]",
        "duplicate_id": row(id="1"),
    }


def _num_requests(teacher: Simulated) -> int:
    return sum(teacher.counts().values())


def _workers(child: psutil.Popen) -> list[psutil.Process]:
    return [each for each in child.children() if "--multiprocessing-fork" in each.cmdline()]


def _wait_for(teacher: Simulated, least: int) -> None:
    deadline = time.monotonic() + 300
    while _num_requests(teacher) < least:
        assert time.monotonic() < deadline, "the build does not ask"
        time.sleep(0.02)
