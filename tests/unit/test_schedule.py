import pytest

from models.schedule import warmup_then_cosine


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, 0.0),
        (0.1, 0.5),  # half of the warm-up
        (0.2, 1.0),  # its end: the peak
        (0.6, 0.55),  # half of the cosine: 0.1 + 0.9 x 0.5
        (1.0, 0.1),  # the end: min_ratio
        (1.3, 0.1),  # a clock that ran over stays there
    ],
)
def test_linear_warm_up_then_cosine(share, expected):
    assert warmup_then_cosine(share, peak=1.0, warmup=0.2, min_ratio=0.1) == pytest.approx(expected)


def test_no_warm_up_begins_at_the_peak():
    assert warmup_then_cosine(0.0, peak=2.0, warmup=0.0, min_ratio=0.1) == pytest.approx(2.0)


def test_all_warm_up_ends_at_the_peak():
    assert warmup_then_cosine(0.5, peak=1.0, warmup=1.0, min_ratio=0.1) == pytest.approx(0.5)
    assert warmup_then_cosine(1.0, peak=1.0, warmup=1.0, min_ratio=0.1) == pytest.approx(1.0)
    assert warmup_then_cosine(1.5, peak=1.0, warmup=1.0, min_ratio=0.1) == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_min_ratio_of_one_is_constant_after_warm_up(share):
    assert warmup_then_cosine(share, peak=3.0, warmup=0.2, min_ratio=1.0) == pytest.approx(3.0)
