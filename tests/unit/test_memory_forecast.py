"""The forecast of memory in docs/training.md."""

from pathlib import Path

import pytest

from models.presets import load_preset
from tests.memory_forecast import forecast, layer_bytes, parameters, table
from tests.model_shapes import SHAPES

DOCS = Path(__file__).parents[2] / "docs"


def test_what_deepspeed_holds_of_7b_on_four_gpus() -> None:
    count = parameters(SHAPES["7b"])
    assert count == pytest.approx(7.62e9, rel=0.001)
    found = forecast(SHAPES["7b"], zero_stage=2, num_ranks=4, tokens=20480)
    assert (found.weights, found.adam, found.gradient) == (2 * count, 3 * count, count)
    assert found.step == (2 + 3 + 2) * count


def test_a_layer_keeps_what_its_matrix_products_need_at_least() -> None:
    # bfloat16 inputs of q, k, v (one), of attention (28 heads of queries, 4 of keys and values each, and what
    # comes out), of o, of gate and up (one), of down; gate and up themselves, and silu between: of 7B.
    products = 2 * (3584 + 3584 + 2 * 512 + 3584 + 3584 + 4 * 18944)
    assert products < layer_bytes(SHAPES["7b"]) < 1.5 * products


@pytest.mark.parametrize(("name", "shape"), [("one-gpu", "3b"), ("paper-3b", "3b"), ("paper-7b", "7b")])
def test_presets_for_80_gb_fit_only_because_layers_are_computed_again(name: str, shape: str) -> None:
    preset = load_preset(name)
    for stage in (preset.sft, preset.rgrpo):
        found = forecast(
            SHAPES[shape],
            zero_stage=stage.zero_stage,
            num_ranks=stage.num_ranks,
            tokens=stage.tokens_per_micro_batch,
        )
        assert stage.gradient_checkpointing
        assert max(found.backward, found.step) < 75e9 < 80e9 < found.backward_kept


def test_the_table_in_the_documentation_is_what_the_command_prints() -> None:
    assert table(20480) in (DOCS / "training.md").read_text(encoding="utf-8")
