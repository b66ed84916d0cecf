"""DeepSpeed's configurations: one per stage of ZeRO, each of which DeepSpeed itself reads."""

import json
from pathlib import Path

import pytest

from models.config import RGRPOConfig, SFTConfig
from models.distributed import deepspeed_config

from deepspeed.runtime.config import DeepSpeedConfig  # isort: skip

FOLDER = Path(__file__).parents[3] / "infra" / "deepspeed"


@pytest.mark.parametrize("zero_stage", range(4))
def test_deepspeed_reads_every_stage_with_the_values_of_a_preset(zero_stage: int) -> None:
    written = json.loads((FOLDER / f"zero{zero_stage}.json").read_text())
    assert written["zero_optimization"]["stage"] == zero_stage
    for config in (
        SFTConfig(zero_stage=zero_stage, max_grad_norm=0.7, precision="bfloat16"),
        RGRPOConfig(zero_stage=zero_stage, max_grad_norm=0.7, precision="float32"),
    ):
        values = deepspeed_config(config, num_trained=1000)
        assert "auto" not in json.dumps(values)
        read = DeepSpeedConfig(values)
        assert read.zero_optimization_stage == zero_stage
        assert read.gradient_clipping == 0.7
        assert read.bfloat16_config.enabled == (config.precision == "bfloat16")
        assert read.gradient_accumulation_steps == read.train_micro_batch_size_per_gpu == 1


@pytest.mark.parametrize(("num_trained", "size"), [(1_359_872, 1_359_872), (7_000_000_000, 500_000_000)])
def test_a_buffer_of_gradients_is_no_larger_than_all_of_them(num_trained: int, size: int) -> None:
    read = DeepSpeedConfig(deepspeed_config(RGRPOConfig(zero_stage=2), num_trained=num_trained))
    assert read.zero_config.reduce_bucket_size == size


def test_there_is_no_other_file() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"zero{stage}.json" for stage in range(4)]
