"""Presets: complete runs, overrides, refusals that help."""

import pytest

from models.config import Look
from models.errors import ConfigError
from models.presets import load_preset, preset_names
from models.trajectory import TurnError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_knows_its_name(name):
    assert load_preset(name).name == name


def test_the_paper_preset_has_the_paper_s_numbers():
    """Appendix A.1 to A.3 and section 3.3."""
    paper = load_preset("paper-7b")
    assert (paper.look.min_pixels, paper.look.max_pixels) == (3136, 1605632)
    assert (paper.sft.batch_size, paper.sft.learning_rate, paper.sft.num_epochs) == (2 * 8 * 4, 2e-7, 3)
    assert (paper.rgrpo.group_size, paper.rgrpo.num_steps, paper.rgrpo.learning_rate) == (5, 300, 1e-6)
    reward = paper.rgrpo.reward
    assert (reward.accuracy, reward.format, reward.validity, reward.validity_cap) == (1, 1, 0.5, 0.5)
    assert (reward.length_per_character, reward.length_cap) == (0.001, 0.25)
    assert paper.rgrpo.objective.aggregation == "paper-eq2"
    assert paper.model.freeze_vision


def test_an_override_changes_one_value():
    changed = load_preset("tiny", ["sft.num_epochs=7", "rgrpo.objective.clip_high=0.3"])
    assert (changed.sft.num_epochs, changed.rgrpo.objective.clip_high) == (7, 0.3)
    assert changed.look == load_preset("tiny").look


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.num_epoch=7"], "sft.num_epoch: unknown key. Did you mean 'num_epochs'"),
        (["rgrpo.objective.clip_hi=0.3"], "Did you mean 'clip_high'"),
        (["sftt.num_epochs=7"], "Did you mean 'sft'"),
        (["sft.num_epochs=0"], "greater than or equal to 1 (found 0)"),
        (["sft.num_epochs=many"], "sft.num_epochs"),
        (["sft.num_epochs"], "stage.key=value"),
        (["seed.x=1"], "is a value, not a group"),
        (["rgrpo.group_size=1"], "rgrpo.group_size"),
        (["look.min_pixels=99999999"], "must satisfy"),
        (["look.max_crops=9"], "engine.max_images"),
        (["look.max_sampled_tokens=512"], "engine.max_model_len"),
        (["promotion.min_questions=100000"], "no version could ever be promoted"),
        (["engine.kind=http"], "needs endpoint"),
        (["sft=1"], "sft"),
        (["sft.num_epochs=[1"], "not valid YAML"),
    ],
)
def test_a_bad_override_is_refused_with_a_way_out(overrides, words):
    with pytest.raises(ConfigError) as refused:
        load_preset("tiny", overrides)
    assert words in str(refused.value)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'tinny' does not exist.*tiny"):
        load_preset("tinny")


@pytest.mark.parametrize(
    ("text", "words"), [("- a list", "mapping"), ("a: [", "not valid YAML"), ("name: x", "is required")]
)
def test_a_broken_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_preset(str(path))


def test_a_set_is_written_in_a_fixed_order():
    look = Look(end_on=frozenset({TurnError.TOO_SMALL, TurnError.BAD_JSON}))
    assert '"end_on":["bad_json","too_small"]' in look.model_dump_json()
    assert Look.model_validate_json(look.model_dump_json()) == look
