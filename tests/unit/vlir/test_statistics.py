from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from models.records import RationaleStep, VLIRRecord, write_records
from models.region import Box
from models.vlir.statistics import Statistics, size_class
from models.vlir.statistics_files import write_statistics


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
        "crops_per_image": {"2": 1},
        "crops_per_record": {"0": 1, "2": 1},
        "records_per_source": {"tiny-world": 2},
        "records_per_kind": {"read": 2},
        "crops_per_size": {"very_small": 0, "small": 0, "medium": 1, "large": 1},
    }
    assert (statistics.num_records, statistics.num_crops) == (2, 2)
    assert statistics.source_mix == {"tiny-world": 1.0}


def _records(sound_record: VLIRRecord) -> list[VLIRRecord]:
    """One record of each of three pictures, and a second one about the first picture; 1 + 2 + 0 + 1 crops."""
    look, answer = sound_record.steps
    questions = [
        replace(sound_record.question, id=str(number), source=source, image_sha256=digest * 64)
        for number, (source, digest) in enumerate([("gqa", "a"), ("vsr", "b"), ("gqa", "c"), ("gqa", "a")])
    ]
    steps = [(look, answer), (look, look, answer), (answer,), (look, answer)]
    return [
        replace(sound_record, question=question, steps=each)
        for question, each in zip(questions, steps, strict=True)
    ]


def _counted(records: list[VLIRRecord]) -> Statistics:
    statistics = Statistics()
    for record in records:
        statistics.add(record)
    return statistics


def test_an_image_is_a_distinct_picture(sound_record):
    statistics = _counted(_records(sound_record))
    assert statistics.crops_per_record == {0: 1, 1: 2, 2: 1}
    # Picture a has the crops of two records, b two of one, c none.
    assert statistics.crops_per_image == {0: 1, 2: 2}
    # Both histograms hold every crop, unlike those of the paper.
    assert sum(crops * images for crops, images in statistics.crops_per_image.items()) == 4
    assert statistics.num_crops == 4


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
def test_parts_merge_to_the_statistics_of_the_whole(sound_record, cut):
    records = _records(sound_record)
    merged = _counted(records[:cut])
    merged.merge(_counted(records[cut:]))
    assert merged == _counted(records)


def test_a_stored_shard_has_the_statistics_of_its_records(sound_record, tmp_path):
    records = _records(sound_record)
    write_records(tmp_path / "shard.parquet", records)
    assert Statistics.of_file(tmp_path / "shard.parquet") == _counted(records)


def test_the_figure_is_written_as_table_and_plot_with_the_same_bytes_twice(sound_record, tmp_path):
    records = _records(sound_record)
    names = write_statistics(_counted(records), tmp_path / "one")
    write_statistics(_counted(records[::-1]), tmp_path / "two")
    assert sorted(names) == ["figure3.csv", "figure3.md", "figure3.png", "figure3.svg"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "figure3.csv").read_text()
    assert "crops per image,2,2,0.666667" in text
    assert "rationales by source,gqa,3,0.75" in text
    assert "| rationales by source | vsr | 1 | 25.0% |" in (tmp_path / "one" / "figure3.md").read_text()
    drawn = ElementTree.parse(tmp_path / "one" / "figure3.svg").getroot()
    words = {
        "".join(element.itertext()).strip() for element in drawn.iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"crops per image (n = 3)", "gqa", "vsr", "small (5 to 25 %)"} <= words
    with Image.open(tmp_path / "one" / "figure3.png") as image:
        assert image.width > 1000


def test_a_set_without_records_and_a_source_with_any_name_are_drawn(sound_record, tmp_path):
    write_statistics(Statistics(), tmp_path / "empty")
    question = replace(sound_record.question, source="$ my |_{ shop")
    names = write_statistics(_counted([replace(sound_record, question=question)]), tmp_path / "named")
    assert all((tmp_path / "empty" / name).stat().st_size for name in names)
    assert "$ my \\|_{ shop" in (tmp_path / "named" / "figure3.md").read_text()
