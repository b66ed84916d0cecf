"""An evaluation fits the questions there are."""

import pytest

from models.errors import ConfigError
from models.presets import load_preset
from tasks.evaluation import fitted

CONFIG = load_preset("tiny").evaluation


def test_a_large_enough_set_changes_nothing() -> None:
    assert fitted(CONFIG, CONFIG.num_questions) == CONFIG


def test_a_small_set_is_measured_whole() -> None:
    found = fitted(CONFIG, 40)
    assert (found.num_questions, found.num_sampled_questions, found.num_ablation_questions) == (40, 40, 40)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="No held-out question was built"):
        fitted(CONFIG, 0)
