"""Named variants: one meaning each, on every path."""

import pytest

from models.config import BoxCorruption, Look
from models.errors import ConfigError
from models.evaluation.variants import VARIANTS, get_variant


def test_every_variant_says_how_crops_are_given() -> None:
    looks = {name: variant.look(Look()) for name, variant in VARIANTS.items()}
    assert looks["full"] == Look()
    assert looks["no_crop"].crop_source == "none"
    assert looks["low_resolution"].crop_source == "low_resolution"
    assert looks["boxes_40"].corruption == BoxCorruption(way="replace", kept_share=0.4)
    assert looks["boxes_90_perturbed"].corruption == BoxCorruption(way="perturb", kept_share=0.9)
    assert len({look.model_dump_json() for look in looks.values()}) == len(VARIANTS)


def test_a_level_takes_the_models_own_misses_into_account() -> None:
    """Own boxes are right at 80 %: half of them kept leaves 40 %."""
    assert get_variant("boxes_40").corruption(0.8) == BoxCorruption(way="replace", kept_share=0.5)
    with pytest.raises(ConfigError, match=r"'boxes_90' wants 90 % .* own are at 80.0 %"):
        get_variant("boxes_90").corruption(0.8)


def test_an_unknown_variant_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'boxes_41'.* full, no_crop, low_resolution"):
        get_variant("boxes_41")
