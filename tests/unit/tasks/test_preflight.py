"""What is known to be wrong before a run starts."""

import pytest

from models.errors import ConfigError
from models.presets import load_preset
from tasks.preflight import check_preset

BUDGET = "rgrpo.tokens_per_micro_batch"


def test_a_preset_that_can_run_says_what_was_looked_at():
    checks = {check.name: check for check in check_preset(load_preset("tiny"))}
    assert all(check.passed for check in checks.values())
    assert str(load_preset("tiny").rgrpo.tokens_per_micro_batch) in checks["micro-batch"].value


def test_a_micro_batch_has_room_for_the_longest_rollout():
    longest = load_preset("tiny").engine.max_model_len
    check_preset(load_preset("tiny", [f"{BUDGET}={longest}"]))
    said = rf"{BUDGET} {longest - 1} must be at least engine.max_model_len {longest}"
    with pytest.raises(ConfigError, match=said):
        check_preset(load_preset("tiny", [f"{BUDGET}={longest - 1}"]))


@pytest.mark.parametrize("factor", [14, 32])
def test_pictures_must_be_cut_into_whole_visual_tokens(factor):
    said = rf"look.pixel_factor is {factor}, .* is 28 pixels wide .* Set look.pixel_factor=28"
    with pytest.raises(ConfigError, match=said):
        check_preset(load_preset("tiny", [f"look.pixel_factor={factor}"]))


def test_a_model_without_a_tower_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="has no vision tower"):
        check_preset(load_preset("tiny", [f"model.path={tmp_path}"]))


def test_a_server_cannot_train():
    engine = load_preset("tiny").engine.model_copy(update={"kind": "vllm-server"})
    with pytest.raises(ConfigError, match="which a server cannot do"):
        check_preset(load_preset("tiny").model_copy(update={"engine": engine}))
