"""Profiles: named values for rewards and objective, under what a preset says of them."""

import pytest
from pydantic import ValidationError

from models.config import ObjectiveConfig, RewardConfig, RGRPOConfig
from models.errors import ConfigError
from models.objective_config import PROFILES
from models.presets import load_preset, preset_names


def test_the_profile_of_the_paper_has_its_numbers():
    rgrpo = RGRPOConfig(profile="paper")
    assert rgrpo.reward == RewardConfig(  # 3.3
        accuracy=1, format=1, validity=0.5, validity_cap=0.5, length_per_character=0.001, length_cap=0.25
    )
    assert rgrpo.objective == ObjectiveConfig(  # Eq. 1 and 2; A.3
        aggregation="paper-eq2", advantage_scale="group", beta=0, engine_weight_cap=0, mask_truncated=False
    )
    assert RGRPOConfig(profile="") == rgrpo.model_copy(update={"profile": ""})


def test_the_profile_of_the_released_code_has_its_numbers():
    rgrpo = RGRPOConfig(profile="released")
    assert rgrpo.reward == RewardConfig(
        accuracy=1,
        format=0.5,
        format_rule="ends-with-answer",
        validity=0.5,
        validity_cap=0.5,
        validity_rule="parsed",
        validity_needs_correct=True,
        length_per_character=0.01,
        length_cap=0.1,
        length_rule="shortest-stretch",
    )
    assert rgrpo.objective == ObjectiveConfig(
        aggregation="seq-mean-token-mean", advantage_scale="group", advantage_eps=1e-4, beta=0
    )


def test_the_standard_profile():
    objective = RGRPOConfig(profile="standard").objective
    assert (objective.aggregation, objective.advantage_scale) == ("token-mean", "batch")
    assert (objective.clip_low, objective.clip_high, objective.engine_weight_cap) == (0.2, 0.28, 2.0)
    assert objective.mask_truncated
    assert RGRPOConfig(profile="standard").reward == RGRPOConfig(profile="paper").reward


@pytest.mark.parametrize(
    ("preset", "profile"),
    [
        ("paper-7b", "paper"),
        ("paper-3b", "paper"),
        ("one-gpu", "standard"),
        ("tiny", "tiny"),
        ("tiny-smoke", "tiny"),
    ],
)
def test_every_preset_names_its_profile(preset, profile):
    rgrpo = load_preset(preset).rgrpo
    assert rgrpo.profile == profile
    assert (rgrpo.reward, rgrpo.objective) == (PROFILES[profile].reward, PROFILES[profile].objective)


def test_preset_tiny_keeps_the_values_that_its_results_were_measured_with():
    rgrpo = load_preset("tiny").rgrpo
    assert rgrpo.reward == RewardConfig(
        accuracy=1, format=1, validity=0.1, validity_cap=0.1, length_per_character=0.0001, length_cap=0.25
    )
    assert rgrpo.objective == ObjectiveConfig(
        aggregation="seq-mean-token-mean",
        advantage_scale="group",
        advantage_eps=1e-4,
        clip_low=0.2,
        clip_high=0.2,
    )


def test_what_is_said_explicitly_wins():
    overrides = ["rgrpo.profile=released", "rgrpo.reward.format=0.7", "rgrpo.objective.beta=0.04"]
    rgrpo = load_preset("tiny", overrides).rgrpo
    released = PROFILES["released"]
    assert rgrpo.reward == released.reward.model_copy(update={"format": 0.7})
    assert rgrpo.objective == released.objective.model_copy(update={"beta": 0.04})
    # Also where it says what is the default anyway, and when it is an object and not a mapping.
    said = RGRPOConfig(profile="standard", objective=ObjectiveConfig(mask_truncated=False))
    assert said.objective == PROFILES["standard"].objective.model_copy(update={"mask_truncated": False})


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_a_resolved_configuration_is_read_back_as_it_is(name, profile):
    preset = load_preset(name, [f"rgrpo.profile={profile!r}", "rgrpo.reward.length_cap=0.01"])
    assert preset.rgrpo.profile == profile
    assert type(preset).model_validate_json(preset.model_dump_json()) == preset
    assert type(preset).model_validate(preset.model_dump()) == preset
    assert RGRPOConfig.model_validate(preset.rgrpo) == preset.rgrpo


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rgrpo.profile=papers", ["rgrpo.profile", "'released'", "'papers'"]),
        ("rgrpo.profile=[paper]", ["rgrpo.profile", "['paper']"]),
        ("rgrpo.reward=3", ["rgrpo.reward", "found 3"]),
        ("rgrpo.reward.lenght_cap=1", ["rgrpo.reward.lenght_cap", "'length_cap'"]),
        ("rgrpo.reward.format_rule=strict", ["rgrpo.reward.format_rule", "'ends-with-answer'"]),
        ("rgrpo.objective.beta=-1", ["rgrpo.objective.beta", "greater than or equal to 0"]),
        ("rgrpo.objective.engine_weight_cap=2", ["rgrpo.objective", "engine_weight_cap 2.0 to 0"]),
    ],
)
def test_a_wrong_value_is_refused_with_the_way_out(override, parts):
    with pytest.raises(ConfigError) as refusal:
        load_preset("paper-7b", [override])
    for part in parts:
        assert part in str(refusal.value)


def test_unknown_keys_are_refused_beside_a_profile_too():
    with pytest.raises(ValidationError, match="clip_hihg"):
        RGRPOConfig(profile="standard", objective={"clip_hihg": 0.3})


@pytest.mark.parametrize("profile", PROFILES.values())
def test_every_profile_says_whose_it_is(profile):
    assert len(profile.about) > 80
