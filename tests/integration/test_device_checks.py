"""What a GPU is asked for in tests/gpu, here on the CPU with the embedded model: so no typo waits there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.config import Precision, resolve_model_path
from models.tiny.tokenizer import build_tokenizer
from tests.device_checks import check_rgrpo, check_segments, check_sft
from tests.model_shapes import SHAPES, Shape, configuration, save_random

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip

pytestmark = pytest.mark.integration

EMBEDDED = resolve_model_path("embedded")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_within_segments(dtype: torch.dtype) -> None:
    found = check_segments("cpu", dtype)
    assert set(found) == {"output", "query", "key", "value"}


@pytest.mark.parametrize(("precision", "zero_stage"), [("float32", 2), ("bfloat16", 3)])
def test_two_steps_of_fine_tuning(precision: Precision, zero_stage: int) -> None:
    found = check_sft(EMBEDDED, precision=precision, zero_stage=zero_stage)
    assert found["second"] != found["first"]


def test_two_steps_of_rgrpo_with_vllm_in_bfloat16() -> None:
    found = check_rgrpo(EMBEDDED, precision="bfloat16", num_threads=1)
    assert found["after"] < found["from the first weights"]


def test_model_flops_of_a_published_shape_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = {"precision": "bfloat16", "length": 1024, "num_samples": 1, "num_steps": 1}
    command = [sys.executable, "-m", "tests.device_checks", "mfu", str(out), "--options", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert 1024 <= found["tokens"] < 1100
    assert found["flops_per_second"] > 0
    assert found["mfu"] is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_model_of_a_shape_is_one_that_trains(tmp_path: Path, tied: bool) -> None:
    shape = Shape(
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        vocab_size=2048,
        tied=tied,
        vision_layers=4,
        vision_hidden_size=64,
        vision_intermediate_size=96,
    )
    model = save_random(shape, tmp_path / "model", dtype="bfloat16")
    found = check_sft(model, precision="float32")
    assert abs(found["first"] - 7.6) < 0.5  # nothing is known: about ln 2048


def test_the_published_shapes_have_the_parameters_of_their_names() -> None:
    billions = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(configuration(shape, build_tokenizer()))
        model.tie_weights()
        billions[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions["3b"] == pytest.approx(3.75, abs=0.02)  # with the tower; the language model has 3.09
    assert billions["7b"] == pytest.approx(8.29, abs=0.02)
    assert 0.06 < billions["small"] < 0.2
