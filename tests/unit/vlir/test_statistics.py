from dataclasses import replace

import pytest

from models.records import RationaleStep
from models.region import Box
from models.vlir.statistics import Statistics, size_class


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (0.0, "very_small"),
        (0.0499, "very_small"),
        (0.05, "small"),
        (0.2499, "small"),
        (0.25, "medium"),
        (0.4999, "medium"),
        (0.5, "large"),
        (1.0, "large"),
    ],
)
def test_size_classes_have_the_bounds_of_the_paper(share, name):
    assert size_class(share) == name


def test_records_and_crops_are_counted(sound_record):
    steps = (
        RationaleStep("a", Box(0, 0, 112, 112, "seen")),  # the whole view: 1.0, large
        RationaleStep("b", Box(0, 0, 56, 56, "seen")),  # a quarter: 0.25, medium
        RationaleStep("c"),
    )
    statistics = Statistics()
    statistics.add(replace(sound_record, steps=steps))
    statistics.add(replace(sound_record, steps=steps[2:]))
    assert statistics.to_dict() == {
        "crops_per_record": {"0": 1, "2": 1},
        "records_per_source": {"tiny-world": 2},
        "records_per_kind": {"read": 2},
        "crops_per_size": {"very_small": 0, "small": 0, "medium": 1, "large": 1},
    }
    assert (statistics.num_records, statistics.num_crops) == (2, 2)
    assert statistics.source_mix == {"tiny-world": 1.0}
