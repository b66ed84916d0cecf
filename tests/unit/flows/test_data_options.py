"""The options for one's own data: what they say in a preset, and what is refused."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from flows.cli import parser
from flows.data_options import check_data, data_overrides
from models.errors import ConfigError
from models.presets import load_preset
from tasks.settings import Settings
from tests.chat_endpoint import models_endpoint

MANIFEST = "/data/my.jsonl"


def options(*words: str) -> argparse.Namespace:
    return parser().parse_args(["build-vlir", *words])


def overrides(*words: str, preset: str = "one-gpu") -> dict[str, object]:
    found = options(*words)
    chosen = data_overrides(found, preset, found.overrides)
    return {name: yaml.safe_load(text) for name, _, text in (each.partition("=") for each in chosen)}


@pytest.mark.parametrize(("owner", "continuation"), [("vllm", "assistant"), ("someone", "user_turn")])
def test_an_endpoint_teaches_and_judges(owner: str, continuation: str) -> None:
    with models_endpoint({"qwen": owner}) as url:
        found = overrides("--manifest", MANIFEST, "--teacher", url, "--connections", "7")
        preset = load_preset("one-gpu", [f"{name}={json.dumps(value)}" for name, value in found.items()])
    (source,) = preset.vlir.sources
    assert (source.kind, source.data) == ("manifest", MANIFEST)
    teacher = preset.vlir.teacher
    assert teacher.kind == "http"
    assert teacher.engine is not None
    assert (teacher.engine.endpoint, teacher.engine.served_model) == (url, "qwen")
    assert (teacher.engine.max_num_seqs, teacher.engine.continuation) == (7, continuation)
    # What a teacher's engine is not told is as the preset has it.
    assert teacher.engine.max_model_len == preset.engine.max_model_len
    assert preset.vlir.semantic_unit == preset.vlir.coherence
    assert (preset.vlir.coherence.endpoint, preset.vlir.coherence.served_model) == (url, "qwen")


def test_a_model_teaches_in_process_and_nobody_judges() -> None:
    found = overrides("--manifest", MANIFEST, "--teacher", "models:/vlm-r3@champion", "--judge", "none")
    preset = load_preset("tiny", [f"{name}={json.dumps(value)}" for name, value in found.items()])
    assert (preset.vlir.teacher.kind, preset.vlir.teacher.model) == ("vllm", "models:/vlm-r3@champion")
    assert preset.vlir.coherence.kind == "none"


def test_what_is_set_by_hand_comes_last() -> None:
    words = ["--manifest", MANIFEST, "--teacher", "embedded", "--judge", "none"]
    found = options(*words, "--set", "vlir.coherence={kind: drawn-world}")
    preset = load_preset("tiny", data_overrides(found, "tiny", found.overrides))
    assert preset.vlir.coherence.kind == "drawn-world"
    assert preset.vlir.semantic_unit.kind == "none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--manifest", MANIFEST], "needs --teacher"),
        (["--manifest", MANIFEST, "--teacher", "embedded"], "somebody else must judge"),
        (["--teacher-model", "x"], "give --teacher URL, too"),
        (["--judge-model", "x"], "give --judge URL, too"),
        (["--licence", "CC"], "give --manifest, too"),
        (["--teacher", "http://127.0.0.1:9/v1", "--manifest", MANIFEST], "does not answer"),
    ],
)
def test_half_of_what_is_needed_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides(*words)


def test_an_endpoint_with_several_models_wants_a_name() -> None:
    with models_endpoint({"a": "vllm", "b": "vllm"}) as url:
        with pytest.raises(ConfigError, match="Name one by --teacher-model"):
            overrides("--manifest", MANIFEST, "--teacher", url)
        found = overrides("--manifest", MANIFEST, "--teacher", url, "--teacher-model", "b")
    assert found["vlir.coherence"]["served_model"] == "b"  # type: ignore[index]


def test_a_manifest_that_is_not_there_is_a_wrong_argument(tmp_path: Path) -> None:
    words = ["--manifest", str(tmp_path / "no.jsonl"), "--teacher", "embedded", "--judge", "none"]
    found = options(*words)
    preset = load_preset("tiny", data_overrides(found, "tiny", found.overrides))
    with pytest.raises(ConfigError, match="there is no such manifest"):
        check_data(preset, Settings.read())
