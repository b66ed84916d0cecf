"""Training on a GPU: `make test-gpu`. Skipped where there is none.

The functions are those that tests/integration/test_device_checks.py runs on a CPU. Widths are the published
ones, weights random. So that AdamW's state and an engine fit beside the model on 80 GB, training takes two
layers of 3B (tied embeddings) and 7B (untied); for MFU, which needs no AdamW, all layers are there.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from models._compat import declare_torchvision_operators

declare_torchvision_operators()  # before transformers' model is imported

from models.segments import _has_varlen_kernel  # noqa: E402
from tests.device_checks import check_segments  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

BENCH = Path(os.environ.get("VLM_R3_WORK_DIR", ".vlm-r3")) / "bench"
# What 80 GB hold beside weights and gradients: activations of 8 and of 4 thousand tokens, all layers.
LENGTH = 1024
NUM_SAMPLES = {"3b": 8, "7b": 4}


def alone(check: str, out: Path, *, shape: str, layers: int = 0, **options: Any) -> dict[str, Any]:
    """What a check finds in a process of its own."""
    command = [sys.executable, "-m", "tests.device_checks", check, str(out), "--shape", shape]
    command += ["--layers", str(layers), "--options", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    found: dict[str, Any] = json.loads(out.read_text())
    print(json.dumps(found, indent=2))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_kernel_for_many_lengths(dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        assert _has_varlen_kernel(torch.device("cuda", torch.cuda.current_device()))
    check_segments("cuda", dtype)


@pytest.mark.parametrize("shape", ["3b", "7b"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_steps_of_fine_tuning(tmp_path: Path, shape: str, zero_stage: int) -> None:
    out = tmp_path / "found.json"
    alone("sft", out, shape=shape, layers=2, precision="bfloat16", zero_stage=zero_stage)


@needs_vllm
@pytest.mark.parametrize(("shape", "zero_stage"), [("3b", 2), ("7b", 2), ("7b", 3)])
def test_two_steps_of_rgrpo(tmp_path: Path, shape: str, zero_stage: int) -> None:
    alone(
        "rgrpo", tmp_path / "found.json", shape=shape, layers=2, precision="bfloat16", zero_stage=zero_stage
    )


@pytest.mark.parametrize("shape", ["3b", "7b"])
def test_model_flops_utilisation(shape: str) -> None:
    BENCH.mkdir(parents=True, exist_ok=True)
    free, _ = torch.cuda.mem_get_info()
    if free < 75 * 10**9:
        pytest.skip(f"needs 75 GB of GPU memory, {free / 1e9:.0f} GB are free")
    out = BENCH / f"mfu-{shape}.json"
    found = alone(
        "mfu", out, shape=shape, precision="bfloat16", length=LENGTH, num_samples=NUM_SAMPLES[shape]
    )
    assert found["mfu"] is None or 0 < found["mfu"] < 1
