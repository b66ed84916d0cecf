"""The paper's analyses as they really run: a child process, the embedded base, the reference engine.

The base knows no look-again protocol, but asked where a card is it writes a box, and so it is given a crop.
"""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.presets import load_preset
from models.records import Question, png_bytes, sha256, write_questions
from models.region import Box
from models.run_config import AnalysisRun, BenchmarkRun
from models.rundir import RunDir
from models.tiny import world
from models.tiny.phrases import BASE_SYSTEM_PROMPT, locate_prompt
from tests.benchmark_examples import file_name, schema_of, small, write

NUM_QUESTIONS = 8

pytestmark = pytest.mark.integration


def boxes_asked_for(num: int) -> list[Question]:
    """Questions whose answer is a box."""
    rng = np.random.default_rng(0)
    questions = []
    for index in range(num):
        scene = world.sample_scene(rng, "test")
        card = scene.cards[0]
        data = png_bytes(world.draw(scene))
        questions.append(
            Question(
                id=f"test-{index}",
                source="tiny",
                split="test",
                kind="read",
                image_bytes=data,
                image_sha256=sha256(data),
                width=world.PICTURE_SIZE,
                height=world.PICTURE_SIZE,
                text=locate_prompt(card.color),
                answers=(card.code,),
                gold_boxes=(Box(*card.box, "original"),),
            )
        )
    return questions


@pytest.fixture(scope="module")
def questions_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "test.parquet"
    write_questions(path, boxes_asked_for(NUM_QUESTIONS))
    return path


def request(analysis: str, questions_path: Path | None, **changes: object) -> AnalysisRun:
    preset = load_preset("tiny", ["engine.kind=transformers"])
    values = {
        "analysis": analysis,
        "model_path": "embedded",
        "questions_path": "" if questions_path is None else str(questions_path),
        "num_questions": NUM_QUESTIONS,
        "levels": (0.4,),
        "look": preset.look.model_copy(update={"system": BASE_SYSTEM_PROMPT, "max_sampled_tokens": 24}),
        "engine": preset.engine,
        "evaluation": preset.evaluation,
        "seed": 0,
    }
    return AnalysisRun.model_validate({**values, **changes})


def make(folder: Path, config: AnalysisRun) -> RunDir:
    run = RunDir.create(folder, config)
    command = [sys.executable, "-m", "models.analyses.run", str(run.path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-2000:]
    for path in run.result().artifacts.values():
        assert (run.path / path).stat().st_size > 0
    name = config.analysis
    assert {f"{name}.csv", f"{name}.svg", f"{name}.png", "table.txt"} <= set(run.result().artifacts)
    assert (run.path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (run.path / f"{name}.svg").read_text()
    return run


def rows(run: RunDir, name: str) -> list[dict[str, str]]:
    with (run.path / name).open() as file:
        return list(csv.DictReader(file))


def test_figure_4_moves_boxes_and_measures_what_was_reached(tmp_path: Path, questions_path: Path) -> None:
    run = make(tmp_path / "run", request("figure4", questions_path))
    points = rows(run, "figure4.csv")
    assert [(point["way"], point["level"]) for point in points] == [
        ("replace", "0.4"),
        ("replace", ""),
        ("perturb", "0.4"),
        ("perturb", ""),
    ]
    moved, own = points[:2]
    assert float(own["grounding_accuracy"]) > 0.5
    assert float(moved["grounding_accuracy"]) < float(own["grounding_accuracy"])
    assert {point["scored"] for point in points} == {str(NUM_QUESTIONS)}


def test_figure_5_shares_out_all_attention(tmp_path: Path, questions_path: Path) -> None:
    run = make(tmp_path / "run", request("figure5", questions_path))
    tokens = rows(run, "figure5_tokens.csv")
    for token in tokens:
        assert sum(float(token[part]) for part in ("image", "crop", "prompt", "answer")) == pytest.approx(
            1, abs=1e-4
        )
    chains = {name: [token for token in tokens if token["chain"] == name] for name in chain_names(tokens)}
    assert any(float(token["crop"]) > 0 for token in chains["interleaved"])
    assert {float(token["crop"]) for token in chains["text only"]} == {0.0}
    assert len(chains["same text, no crops"]) == len(chains["interleaved"])
    assert {point["chain"] for point in rows(run, "figure5.csv")} == set(chains)


def chain_names(tokens: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(token["chain"] for token in tokens))


def test_table_2_on_a_published_benchmark(tmp_path: Path) -> None:
    published, split, found = small("mme")
    write(tmp_path / "mme" / file_name(split), found, schema_of(published))
    asked = request("table2", tmp_path)
    benchmark = BenchmarkRun(
        benchmark="mme",
        data_path=str(tmp_path / "mme"),
        split=split,
        allow_partial=True,
        model_path="embedded",
        look=asked.look,
        engine=asked.engine,
        seed=0,
    )
    config = request("table2", None, benchmarks=(benchmark,), base_path="embedded", sft_path="embedded")
    table = rows(make(tmp_path / "run", config), "table2.csv")
    assert [row["variant"] for row in table] == ["base", "no_crop", "low_resolution", "no_rgrpo", "full"]
    assert {row["scored"] for row in table} == {"2"}
    # The same model again: no question differs.
    assert [row["difference"] for row in table[-2:]] == ["0", "0"]
