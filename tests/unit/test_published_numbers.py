"""The published numbers are those of the paper, cell by cell."""

from pathlib import Path

import pytest

from models.benchmarks.scorer import BENCHMARKS
from models.errors import ConfigError
from models.published_numbers import AVERAGE, read_published

# The rows of arXiv 2505.16192v2 as its text prints them.
TABLE_1 = """
Gemini-2 Flash - 73.1 41.3 71.7 - - 92.1 -
GPT-4o - 63.8 30.4 70.3 2328 66.2 91.1 56.2
o1 - 71.8 63.2 77.6 - - 81.6 -
InternVL2.5 8B 58.3 17.1 51.8 2210 - - -
LLaVA-Next 8B 37.5 - 41.7 1957 72.8 - -
LLaVA-CoT 11B 54.8 - - - - - 47.8
R1-onevision 7B 64.1 29.9 - - - - -
Vision-R1 7B 73.5 - - 2190 - - 49.5
Mulberry 7B 63.1 - 55.0 - - - 54.1
Qwen2.5-VL 7B 68.2 25.1 58.6 2347 73.6 95.7 61.3
Ours 7B 70.4 30.2 62.2 2432 87.9 96.8 62.0
"""
TABLE_2 = """
Base Model (Qwen2.5-VL) 68.2 58.6 73.6 95.7 74.0
w/o Interleaved Chain-of-Thought 67.1 (↓3.3) 59.4 (↓2.8) 75.4 (↓12.5) 95.9 (↓0.9) 74.4 (↓4.9)
w/o VLIR Fine-tuning 65.8 (↓4.6) 57.0 (↓5.2) 72.2 (↓15.7) 93.3 (↓3.5) 72.1 (↓7.2)
w/o R-GRPO 69.7 (↓0.7) 60.8 (↓1.4) 84.6 (↓3.3) 96.1 (↓0.7) 77.8 (↓1.5)
Full VLM-R3 (Ours) 70.4 62.2 87.9 96.8 79.3
"""

PUBLISHED = read_published()


def test_table_1_is_the_printed_one() -> None:
    table = PUBLISHED.table(1)
    assert table.columns == (
        "mathvista",
        "mathvision",
        "mmmu",
        "mme",
        "scienceqa",
        "docvqa",
        "hallusionbench",
    )
    assert set(table.columns) == set(BENCHMARKS)
    printed = [line.split() for line in TABLE_1.strip().splitlines()]
    for row, words in zip(table.rows, printed, strict=True):
        *name, params = words[:-7]
        assert (row.model, row.params) == (" ".join(name), params)
        cells = dict(zip(table.columns, words[-7:], strict=True))
        assert row.values == {column: float(cell) for column, cell in cells.items() if cell != "-"}


def test_table_2_is_the_printed_one() -> None:
    table = PUBLISHED.table(2)
    printed = TABLE_2.strip().splitlines()
    for row, line in zip(table.rows, printed, strict=True):
        words = line.removeprefix(row.model).split()
        assert list(row.values.values()) == [float(word) for word in words if "↓" not in word]
        assert list(row.drops.values()) == [float(word.strip("(↓)")) for word in words if "↓" in word]
        assert tuple(row.values) == table.columns


def test_table_2_agrees_with_itself() -> None:
    *_, full = PUBLISHED.table(2).rows
    for row in PUBLISHED.table(2).rows:
        scores = [value for column, value in row.values.items() if column != AVERAGE]
        assert row.values[AVERAGE] == pytest.approx(sum(scores) / 4, abs=0.051)
        for column, drop in row.drops.items():
            assert full.values[column] - row.values[column] == pytest.approx(drop, abs=1e-6)


def test_the_base_and_ours_are_the_same_in_both_tables() -> None:
    one, two = ({row.model: row.values for row in PUBLISHED.table(number).rows} for number in (1, 2))
    shared = ("mathvista", "mmmu", "scienceqa", "docvqa")
    for left, right in (("Qwen2.5-VL", "Base Model (Qwen2.5-VL)"), ("Ours", "Full VLM-R3 (Ours)")):
        assert [one[left][column] for column in shared] == [two[right][column] for column in shared]


def test_every_column_of_table_1_has_a_caution() -> None:
    about = {column for each in PUBLISHED.cautions if not each.models for column in each.columns}
    assert about == set(BENCHMARKS)
    models = {row.model for row in PUBLISHED.table(1).rows}
    assert {model for each in PUBLISHED.cautions for model in each.models} <= models


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: x\ntables: []\n", "cautions"),
        ("source: x\ncautions: []\ntables: [{number: 1, title: x, columns: [gqa], rows: []}]", "'gqa'"),
        (
            "source: x\ncautions: []\ntables: [{number: 1, title: x, columns: [mme],"
            " rows: [{model: m, values: {mmmu: 1}}]}]",
            "row 'm': ['mmmu'] are not among its columns",
        ),
        ("a: [", "does not hold published numbers"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_published(tmp_path / "x.yaml")
    assert says in str(error.value)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="no table 3 here, only 1, 2"):
        PUBLISHED.table(3)
