"""The README as it stands: every command of it is run, here or in a test that is named, and its Python."""

import ast
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from models.tiny import world
from tests.benchmark_examples import file_name, schema_of, small, write
from tests.readme import README, commands_in
from tests.s3_server import BUCKET, S3Server
from tests.trained import BUILD, RUN, Trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

ASK = 'vlm-r3 ask picture.png "what code is on the red card?"'
EVALUATE = "vlm-r3 evaluate --benchmark mme --data FOLDER"
SERVE = "vlm-r3 serve models:/vlm-r3@champion"
# Commands, and what they print (tests/trained.py says what stands for what only a user has).
PRINTS = {
    "vlm-r3 doctor": r"ok   cores +\d+\n(.*\n)*ok   champion +version \d",
    "vlm-r3 promote --version 3": r"vlm-r3 version 1 is champion\.",
    "vlm-r3 history": r"promoted +version 1 ",
    f"{EVALUATE} --endpoint http://HOST:8000/v1": r"benchmark +file://",
    f"{EVALUATE} --model models:/vlm-r3@champion --variant no_crop": r"benchmark +file://",
    "vlm-r3 evaluate --benchmark mathvista --data s3://BUCKET/PREFIX --judge-endpoint http://HOST:8000/v1 "
    "--judge-model NAME": r"benchmark +file://",
    "vlm-r3 table": r"measured, look-again",
    "python -m models.evaluation.score mme predictions.jsonl": r'"sum": 200\.0',
    ASK: r"answer   .*\nmodel    models:/vlm-r3/\d\npicture  picture-looked\.png",
    f"{ASK} --json": r'^\{"answer": .*"model": "models:/vlm-r3/\d"',
    'eval "$(vlm-r3 completion bash)"': r"^$",
    "VLM_R3_ARTIFACTS=s3://BUCKET/PREFIX vlm-r3 doctor": rf"ok   artifact store +s3://{BUCKET}/readme at",
    "vlm-r3 fetch models:/vlm-r3@champion DIR": r"sha256 [0-9a-f]{64}",
    "vlm-r3 prune": r"0 artifacts, 0\.0 MB could be removed",
}
# Commands that other tests run: they ask tests.readme for them, word by word.
ELSEWHERE = {
    BUILD: "tests/trained.py",
    RUN: "tests/trained.py",
    "vlm-r3 run --preset tiny": "tests/integration/test_pipeline.py",
    "vlm-r3 evaluate --preset tiny": "tests/integration/test_pipeline.py",
    "vlm-r3 preflight --preset tiny": "tests/integration/test_pipeline.py",
    "vlm-r3 retrain --preset tiny": "tests/integration/test_pipeline.py",
    'vlm-r3 rollback --reason "it misreads signs"': "tests/integration/test_retrain.py",
    'vlm-r3 retrain --preset one-gpu --manifest my.jsonl --teacher http://HOST:8000/v1 --licence "CC BY 4.0" '
    "--set retrain.teacher=champion": "tests/integration/test_retrain.py",
    f"{EVALUATE} --style direct --title before": "tests/integration/test_benchmark_evidence.py",
    f"{EVALUATE} --against before": "tests/integration/test_benchmark_evidence.py",
    "vlm-r3 deploy": "tests/integration/test_schedule.py",
    "prefect event emit vlm-r3.dataset.ready --resource-id s3://BUCKET/sources/NAME": (
        "tests/integration/test_schedule.py"
    ),
    "prefect deployment run retrain/tiny": "tests/integration/test_schedule.py",
    "prefect deployment schedule ls retrain/tiny": "tests/integration/test_schedule.py",
    "prefect deployment run pipeline/tiny": "tests/integration/test_schedule.py",
    "vlm-r3 deploy --gpu-pool gpu-k8s --home /app": "tests/integration/test_schedule.py",
    "vlm-r3 services up": "tests/team_server.py",
    "set -a; . .vlm-r3/services/env; set +a": "tests/team_server.py",
}
# Commands that no test can run, and why. What they name is checked here and in tests/unit.
NOT_RUN = {
    "make demo": "installs, then runs `vlm-r3 run --preset tiny`, which is run above on preset tiny-smoke",
    "make test": "runs this test",
    "kubectl apply -f infra/k8s/": "needs a cluster; tests/unit/infra checks the manifests by their schemas",
}


@pytest.fixture(scope="module")
def place(trained: Trained, s3: S3Server) -> Trained:
    """With a picture to ask about, two small benchmarks, and predictions to score."""
    rng = np.random.default_rng(0)
    scenes = (world.sample_scene(rng, "validation") for _ in range(100))
    scene = next(scene for scene in scenes if any(card.color == "red" for card in scene.cards))
    world.draw(scene).save(trained.folder / "picture.png")
    for name, folder in (("mme", "FOLDER"), ("mathvista", "mathvista")):
        published, split, rows = small(name)
        write(trained.folder / folder / file_name(split), rows, schema_of(published))
    s3.put_folder(trained.folder / "mathvista", "readme")
    asked = [{name: row[name] for name in row if name != "image"} for row in small("mme")[2]]
    predictions = [{"id": str(n), "row": row, "prediction": row["answer"]} for n, row in enumerate(asked)]
    lines = [json.dumps(prediction) + "\n" for prediction in predictions]
    (trained.folder / "predictions.jsonl").write_text("".join(lines))
    return trained


def test_every_command_is_run_somewhere_or_listed_with_a_reason() -> None:
    named = [*PRINTS, SERVE, *ELSEWHERE, *NOT_RUN]
    assert len(set(named)) == len(named)
    assert set(commands_in(README)) == set(named)
    for command, file in ELSEWHERE.items():
        nodes = ast.walk(ast.parse((README.parent / file).read_text()))
        said = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert command in said, f"{file} does not run: {command}"
    targets = (README.parent / "Makefile").read_text()
    assert all(f"\n{command.split()[1]}: env" in targets for command in NOT_RUN if command.startswith("make"))


@pytest.mark.parametrize("command", PRINTS)
def test_a_command_does_what_it_says(command: str, place: Trained, s3: S3Server) -> None:
    done = place.run(command, S3_PREFIX=f"s3://{BUCKET}/readme", **s3.environment())
    assert done.code == 0, done.out + done.err
    assert re.search(PRINTS[command], done.out, re.MULTILINE), done.out + done.err
    assert "Traceback" not in done.err


def test_the_served_champion_answers_openais_client_and_ends_when_asked(place: Trained) -> None:
    process = place.shell(SERVE)
    try:
        assert process.stdout is not None
        addresses = (re.match(r"serving +(\S+)", line) for line in process.stdout)
        address = next(found[1] for found in addresses if found)
        with OpenAI(base_url=address, api_key="none") as client:
            messages: list[Any] = [{"role": "user", "content": "what code is on the red card?"}]
            reply = client.chat.completions.create(model="vlm-r3", messages=messages, max_tokens=8)
        assert reply.choices[0].message.content is not None
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_the_readme_example_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded base answers directly: it does not know the protocol, so it ends without an answer tag."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    rng = np.random.default_rng(0)
    scenes = (world.sample_scene(rng, "validation") for _ in range(100))
    scene = next(scene for scene in scenes if any(card.color == "red" for card in scene.cards))
    world.draw(scene).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert names["trajectory"].num_sampled_tokens > 0  # type: ignore[attr-defined]
    assert str(names["trajectory"].stop) in printed  # type: ignore[attr-defined]
    assert len(example.strip().splitlines()) <= 12
