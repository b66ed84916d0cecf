import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.config import EMBEDDED_MODEL, EngineConfig, Look, RGRPOConfig, resolve_model_path
from models.errors import ConfigError
from models.presets import PRESETS_FOLDER, load_preset, preset_names
from models.trajectory import TurnError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete(name):
    assert load_preset(name).name == name


def test_the_presets_that_the_project_promises():
    assert {"tiny", "tiny-smoke", "paper-7b", "paper-3b", "one-gpu"} <= set(preset_names())


def test_the_paper_preset_has_the_numbers_of_the_paper():
    preset = load_preset("paper-7b")
    assert (preset.look.min_pixels, preset.look.max_pixels) == (3136, 1605632)  # A.1.1
    assert (preset.sft.num_epochs, preset.sft.learning_rate) == (3, 2e-7)  # A.2
    assert (preset.rgrpo.num_steps, preset.rgrpo.group_size, preset.rgrpo.learning_rate) == (300, 5, 1e-6)
    assert preset.rgrpo.objective.aggregation == "paper-eq2"
    assert (preset.sft.batch_size, preset.model.freeze_vision) == (2 * 8 * 4, True)  # A.2
    reward = preset.rgrpo.reward  # 3.3
    assert (reward.accuracy, reward.format) == (1.0, 1.0)
    assert (reward.validity, reward.validity_cap) == (0.5, 0.5)
    assert (reward.length_per_character, reward.length_cap) == (0.001, 0.25)


@pytest.mark.parametrize("name", preset_names())
def test_presets_for_gpus_compute_layers_again_and_those_for_a_cpu_do_not(name):
    preset = load_preset(name)
    for stage in (preset.sft, preset.rgrpo):
        assert stage.gradient_checkpointing == (stage.precision == "bfloat16")


@pytest.mark.parametrize("name", preset_names())
def test_every_picture_that_may_be_shown_fits_into_the_context(name):
    preset = load_preset(name)
    pictures = (preset.look.max_crops + 1) * preset.look.max_pixels // preset.look.pixel_factor**2
    room_for_prompt_and_refusals = preset.engine.max_model_len - preset.look.max_sampled_tokens - pictures
    assert room_for_prompt_and_refusals >= 256


@pytest.mark.parametrize("name", preset_names())
def test_a_checkpoint_is_left_from_before_all_that_a_guard_looks_at(name):
    """A guard that pauses names it as the last good one."""
    training = load_preset(name).rgrpo
    guards = training.guards
    looked_at = max(guards.window, guards.probe_window * guards.probe_every)
    assert (training.keep_checkpoints - 1) * training.checkpoint_every >= looked_at


def test_a_crop_can_be_answered_after():
    with pytest.raises(ConfigError, match="max_turns 1 leaves no turn to answer after a crop"):
        load_preset("tiny", ["look.max_turns=1"])
    assert load_preset("tiny", ["look.max_turns=1", "look.max_crops=0"]).look.max_turns == 1


def test_an_override_changes_one_value():
    plain, changed = load_preset("tiny"), load_preset("tiny", ["sft.num_epochs=7", "seed=3"])
    assert (changed.sft.num_epochs, changed.seed) == (7, 3)
    assert changed.sft.model_copy(update={"num_epochs": plain.sft.num_epochs}) == plain.sft
    assert changed.rgrpo == plain.rgrpo


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("look.end_on=[bad_json, too_small]", frozenset({TurnError.BAD_JSON, TurnError.TOO_SMALL})),
        ("look.system=null", None),
        ("look.system=Look = again", "Look = again"),
        ("look.crop_source=none", "none"),
    ],
)
def test_an_override_is_read_as_yaml(override, value):
    name = override.partition("=")[0].removeprefix("look.")
    assert getattr(load_preset("tiny", [override]).look, name) == value


# A wrong override, and what its refusal must name: the value, the rule or the nearest key.
REFUSED = {
    "sft.num_epoch=3": ["sft.num_epoch", "unknown key", "'num_epochs'"],
    "stf.num_epochs=3": ["stf", "unknown key", "'sft'"],
    "rgrpo.objective.clip_hihg=0.3": ["rgrpo.objective.clip_hihg", "'clip_high'"],
    "sft.num_epochs=0": ["sft.num_epochs", "greater than or equal to 1", "found 0"],
    "rgrpo.gradient_checkpointing=often": ["rgrpo.gradient_checkpointing", "valid boolean", "'often'"],
    "sft.num_epochs=many": ["sft.num_epochs", "valid integer", "'many'"],
    "rgrpo.group_size=1": ["rgrpo.group_size", "greater than or equal to 2"],
    "look.crop_source=blurry": ["look.crop_source", "'original'", "'blurry'"],
    "look.min_pixels=100": ["pixel_factor^2 = 784", "100"],
    "engine.kind=http": ["endpoint", "served_model"],
    "engine.max_images=2": ["engine.max_images 2", "look.max_crops + 1"],
    "look.max_sampled_tokens=100000": ["look.max_sampled_tokens 100000", "below engine.max_model_len"],
    "promotion.min_questions=100000": ["promotion.min_questions 100000", "no version could ever be promoted"],
    "sft.max_grad_norm=.inf": ["sft.max_grad_norm", "finite number", "found inf"],
    "seed=-1": ["seed", "greater than or equal to 0", "found -1"],
    "sft.betas=[1.5, 0.9]": ["sft.betas", "less than 1", "found 1.5"],
    "rgrpo.kinds={read: 0}": ["rgrpo.kinds", "a weight above 0"],
    "rgrpo.temperature=0.001": ["rgrpo.temperature", "greater than or equal to 0.01"],
    "rgrpo.guards.min_entropy=9": ["min_entropy 9", "max_entropy"],
    "seed=": ["seed", "integer", "None"],
    "seed": ["'seed'", "stage.key=value"],
    "=3": ["'=3'", "stage.key=value"],
    "seed.a=3": ["'seed.a=3'", "not a group of keys"],
    "look.system=[": ["look.system=[", "not valid YAML"],
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_is_refused_with_the_way_out(override):
    with pytest.raises(ConfigError) as refusal:
        load_preset("tiny", [override])
    for part in REFUSED[override]:
        assert part in str(refusal.value)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'tyny' does not exist.*tiny"):
        load_preset("tyny")


def test_a_preset_may_be_a_file_of_ones_own(tmp_path: Path):
    values = yaml.safe_load((PRESETS_FOLDER / "tiny.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"name": "mine"}))
    assert load_preset(str(tmp_path / "mine.yaml")).name == "mine"


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "just words", "\x00"])
def test_a_file_that_is_no_preset_is_refused(tmp_path: Path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_preset(str(tmp_path / "mine.yaml"))


def test_a_missing_key_is_named(tmp_path: Path):
    values = yaml.safe_load((PRESETS_FOLDER / "tiny.yaml").read_text())
    del values["look"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="look: is required and missing"):
        load_preset(str(tmp_path / "mine.yaml"))


def test_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Look().max_crops = 3


def test_an_endpoint_needs_its_address():
    with pytest.raises(ValueError, match="endpoint"):
        EngineConfig(kind="http")
    assert EngineConfig(kind="http", endpoint="http://h/v1", served_model="m").endpoint == "http://h/v1"


def test_the_embedded_model_is_part_of_the_repository():
    assert resolve_model_path("embedded") == EMBEDDED_MODEL
    assert (EMBEDDED_MODEL / "model.safetensors").is_file()


def test_a_path_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"holds no config\.json.*'embedded'"):
        resolve_model_path(str(tmp_path))


@pytest.mark.parametrize("key", ["engine.endpoint", "judge.endpoint"])
def test_a_password_in_an_address_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError, match=f"{key}: .*holds a user or a password") as refused:
        load_preset("tiny", [f"{key}=http://ada:planted@host:8000/v1"])
    assert "planted" not in str(refused.value)


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path):
    shutil.copytree(EMBEDDED_MODEL, tmp_path / "model")
    assert resolve_model_path(str(tmp_path / "model")) == tmp_path / "model"
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1.0}))
    with pytest.raises(ConfigError, match=r"pytorch_model.bin could run code when loaded. Only safetensors"):
        resolve_model_path(str(tmp_path / "model"))


def test_reading_a_preset_imports_nothing_heavy():
    heavy = ["torch", "transformers", "deepspeed", "vllm", "prefect", "mlflow", "great_expectations"]
    code = (
        "import sys; from models.presets import load_preset; load_preset('tiny'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_engine_cannot_sample_from_a_policy_that_is_spread_over_ranks():
    shared = RGRPOConfig(num_ranks=2, zero_stage=3)
    with pytest.raises(ConfigError, match=r"'transformers' cannot sample .* over 2 ranks.* Use 'vllm'"):
        shared.require_fit_with(EngineConfig(kind="transformers"))
    shared.require_fit_with(EngineConfig())
    shared.model_copy(update={"zero_stage": 2}).require_fit_with(EngineConfig(kind="transformers"))
