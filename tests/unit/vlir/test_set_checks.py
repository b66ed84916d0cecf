import json

import pytest

from models.errors import RecordError
from models.vlir.measured import Measured
from models.vlir.set_checks import DriftFinding, SourceFinding, check_sources, drift, read_statistics


@pytest.mark.parametrize(
    ("now", "before", "distance", "most_moved"),
    [
        ({"a": 1, "b": 1}, {"a": 5, "b": 5}, 0.0, "a"),
        # Shares 0.5, 0.5 against 0.25, 0.75.
        ({"a": 2, "b": 2}, {"a": 1, "b": 3}, 0.25, "a"),
        # A new source takes a fifth from the two others: 0.4, 0.4, 0.2 against 0.5, 0.5.
        ({"a": 4, "b": 4, "c": 2}, {"a": 1, "b": 1}, 0.2, "c"),
        ({"a": 3}, {"b": 7}, 1.0, "a"),
        ({"a": 0}, {"a": 0}, 0.0, ""),
    ],
)
def test_drift_is_the_total_variation_distance(now, before, distance, most_moved):
    found = drift(now, before)
    assert found.distance == pytest.approx(distance)
    assert found.most_moved == most_moved


def test_a_version_without_any_crop_has_drifted_all_the_way():
    assert drift({"a": 0}, {"a": 3}) == DriftFinding(1.0, "", "one of the versions has none")


def test_what_moved_most_is_said_with_its_shares():
    assert drift({"a": 2, "b": 2}, {"a": 1, "b": 3}).words == "a from 25.0% to 50.0%"


def test_sources_are_those_configured_named_and_found():
    row = {
        "id": "1",
        "image_sha256": "a" * 64,
        "source": "found",
        "kind": None,
        "seen_width": 10,
        "seen_height": 10,
        "steps": [{"text": "", "box": None}],
    }
    measured = Measured()
    measured.add([row, row])
    sources = [
        {"kind": "tiny", "name": ""},
        {"kind": "gqa", "name": ""},
        {"kind": "manifest", "name": "shop"},
    ]
    manifest = {"settings": {"vlir": {"sources": sources}}, "source_mix": {"claimed": 1.0}}
    assert check_sources(manifest, measured) == [
        SourceFinding("claimed", 0),
        SourceFinding("found", 2),
        SourceFinding("gqa", 0),
        SourceFinding("shop", 0),
    ]


def test_examples_of_sources_and_sizes_are_the_first_three_ids():
    measured = Measured()
    row = {
        "image_sha256": "a" * 64,
        "source": "gqa",
        "kind": "",
        "seen_width": 10,
        "seen_height": 10,
        "steps": [{"text": "", "box": [0.0, 0.0, 10.0, 10.0]}, {"text": "", "box": None}],
    }
    measured.add({**row, "id": str(number)} for number in range(5))
    assert measured.examples == {"gqa": ["0", "1", "2"], "large": ["0", "1", "2"]}
    assert measured.num_rows == 5


@pytest.mark.parametrize(
    "damage", [{"steps": None}, {"seen_width": None}, {"image_sha256": None}, {"steps": [{"box": [1.0]}]}]
)
def test_a_row_that_cannot_be_counted_is_left_out(damage):
    row = {
        "id": "1",
        "image_sha256": "a" * 64,
        "source": "gqa",
        "kind": "",
        "seen_width": 10,
        "seen_height": 10,
        "steps": [{"text": "", "box": None}],
    }
    measured = Measured()
    measured.add([{**row, **damage}])
    assert (measured.num_rows, measured.statistics.num_records) == (1, 0)


def test_statistics_that_are_none_are_refused(tmp_path):
    path = tmp_path / "statistics.json"
    for text in ("", "[]", json.dumps({"crops_per_size": {}}), json.dumps({"crops_per_size": 1})):
        path.write_text(text)
        with pytest.raises(RecordError, match="no statistics of a previous version"):
            read_statistics(path)
    with pytest.raises(RecordError, match="no statistics"):
        read_statistics(tmp_path / "missing.json")
