import pytest

from models.config import SFTConfig
from models.sft.schedule import learning_rate

CONFIG = SFTConfig(learning_rate=1.0, warmup_ratio=0.2, min_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, 0.0),
        (0.1, 0.5),  # half of the warm-up
        (0.2, 1.0),  # its end: the peak
        (0.6, 0.55),  # half of the cosine: 0.1 + 0.9 x 0.5
        (1.0, 0.1),  # the end: min_lr_ratio
        (1.3, 0.1),  # a clock that ran over stays there
    ],
)
def test_linear_warm_up_then_cosine(share, expected):
    assert learning_rate(share, CONFIG) == pytest.approx(expected)


def test_no_warm_up_begins_at_the_peak():
    assert learning_rate(0.0, CONFIG.model_copy(update={"warmup_ratio": 0.0})) == pytest.approx(1.0)


def test_all_warm_up_ends_at_the_peak():
    config = CONFIG.model_copy(update={"warmup_ratio": 1.0})
    assert learning_rate(0.5, config) == pytest.approx(0.5)
