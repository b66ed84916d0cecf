"""A user's folder after the README's section on training: a manifest, a teacher, and a first champion."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from PIL import Image

from models.evidence import Evidence
from models.presets import load_preset
from tests.chat_endpoint import Reply, completion, serving
from tests.prefect_api import prefect_api
from tests.readme import documented

# As small as it gets, with an open gate: this is about the machinery.
SMALL = [
    *("controls=false", "engine.kind=transformers", "sft.num_ranks=1", "vlir.test_share=0.4"),
    *("vlir.num_questions=40", "vlir.num_validation_questions=8"),
    *("validation.min_records=5", "validation.max_size_drift=1"),
    *("rgrpo.num_steps=1", "rgrpo.questions_per_step=2", "evaluation.num_sampled_questions=0"),
    *("promotion.min_questions=1", "promotion.min_gain=-1", "promotion.max_kind_loss=1"),
    "promotion.max_protocol_error_rate=1",
]
BUILD = (
    "vlm-r3 build-vlir --preset one-gpu --manifest my.jsonl --teacher http://HOST:8000/v1 "
    '--licence "CC BY 4.0"'
)
RUN = 'vlm-r3 run --preset one-gpu --manifest my.jsonl --teacher http://HOST:8000/v1 --licence "CC BY 4.0"'
NUM_ROWS = 70


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str
    cpu_seconds: float


@dataclass
class Trained:
    """The folder, and what commands of the README mean in it."""

    folder: Path
    endpoint: str
    api_url: str
    database: Path
    built: Done | None = None
    first: Done | None = None
    # What stands in the README for things that only a user has.
    replaced: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replaced = {
            "--preset one-gpu": "--preset small.yaml",
            "--preset tiny": "--preset small.yaml",
            "http://HOST:8000/v1": self.endpoint,
            "--version 3": "--preset small.yaml --version 1",
            "--benchmark": "--preset small.yaml --allow-partial --benchmark",  # of two rows
            "--judge-model NAME": "--judge-model judge",
            "vlm-r3 serve": "vlm-r3 serve --preset small.yaml --port 0",
        }

    @property
    def work_dir(self) -> Path:
        """Where commands keep things, as nobody has said otherwise."""
        return self.folder / ".vlm-r3"

    @property
    def client(self) -> MlflowClient:
        """The registry and the tracked runs."""
        return MlflowClient(tracking_uri=f"sqlite:///{self.work_dir}/mlflow.db")

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """That of a user in the activated environment of the project."""
        foreign = ("VLM_R3_", "PREFECT_", "MLFLOW_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "PREFECT_API_URL": self.api_url, **values}

    def shell(self, command: str, **values: str) -> "subprocess.Popen[str]":
        """A command of the README, started in a shell; ``values`` are environment variables."""
        line = documented(command, self.replaced | {"s3://BUCKET/PREFIX": values.pop("S3_PREFIX", "s3://")})
        return subprocess.Popen(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment(values),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, **values: str) -> Done:
        """The same until its end."""
        began = cpu_seconds_of_children()
        process = self.shell(command, **values)
        out, err = process.communicate()
        return Done(process.returncode, out, err, cpu_seconds_of_children() - began)

    def add_rows(self, first: int, last: int) -> None:
        """Pictures that the teacher can read, as more lines of the manifest."""
        with (self.folder / "my.jsonl").open("a") as manifest:
            for number in range(first, last):
                name = f"{number}.png"
                Image.new("RGB", (112, 112), (number, 255 - number, 7)).save(self.folder / name)
                row = {"image": name, "question": "what code?", "answer": "K7"}
                manifest.write(json.dumps(row) + "\n")

    def prefect(self, query: str) -> list[tuple[Any, ...]]:
        """What Prefect's database answers."""
        with sqlite3.connect(self.database) as database:
            return database.execute(query).fetchall()

    def evidence(self, version: str) -> Evidence:
        """What a version carries."""
        tags = self.client.get_model_version("vlm-r3", version).tags
        return Evidence.read(Path(tags["evidence_uri"].removeprefix("file://")))

    def data(self, version: str) -> Path:
        """The set that a version was trained on."""
        return Path(self.client.get_model_version("vlm-r3", version).tags["data_uri"].removeprefix("file://"))


def cpu_seconds_of_children() -> float:
    """What children that have ended, and theirs, have computed, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def teach(body: dict[str, Any], number: int) -> Reply:
    """A teacher that looks once and says K7, a judge that likes it, and a reader of answers."""
    asked = json.dumps(body)
    if body["model"] == "judge":
        return 200, completion("1.2")
    if "Now output 'yes' or 'no' directly." in asked:
        return 200, completion("yes")
    if '"assistant"' in asked:
        return 200, completion(" It says K7.</think><answer>K7</answer>", stop_reason="</answer>")
    looks = '<think>I look closer at the corner. {"bbox_2d": [0, 0, 56, 56]}'
    return 200, completion(looks, stop_reason="}")


@contextmanager
def trained_place(folder: Path) -> Iterator[Trained]:
    """The folder while a block lasts, with its endpoint and a Prefect server."""
    preset = load_preset("tiny-smoke", SMALL).model_dump(mode="json", exclude_unset=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    with serving() as endpoint, prefect_api(folder / "prefect") as api_url:
        endpoint.answer = teach
        endpoint.models["simulated"] = "vllm"
        place = Trained(folder, endpoint.url, api_url, folder / "prefect" / "prefect.db")
        place.add_rows(0, NUM_ROWS)
        place.built = place.run(BUILD)
        assert place.built.code == 0, place.built.err
        place.first = place.run(RUN)
        assert place.first.code == 0, place.first.err
        yield place
