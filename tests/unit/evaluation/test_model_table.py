"""The table of models: what was measured stands beside what is published, and nothing is mixed silently."""

import csv
import io
from html.parser import HTMLParser

import pytest

from models.baselines import read_baselines
from models.evaluation.model_table import Measured, ModelTable, TableRow, build_table
from models.evaluation.model_table_formats import FORMATS, TEXT_WIDTH, to_csv, to_html, to_markdown, to_text
from models.published_numbers import read_published
from tests.benchmark_results_examples import some_results

QWEN = {"name": "qwen2.5-vl-7b"}
PUBLISHED = read_published()


def table_of(*runs: tuple, number: int = 1) -> ModelTable:
    """The table of some results; each comes with the time at which it was written, or none."""
    pairs = [run if isinstance(run, tuple) else (run, 0.0) for run in runs]
    measured = [Measured(results, f"/runs/{index}", when) for index, (results, when) in enumerate(pairs)]
    return build_table(PUBLISHED, measured, read_baselines(), number=number)


def measured_rows(table: ModelTable) -> list[TableRow]:
    return [row for row in table.rows if row.source == "measured"]


def notes_of(table: ModelTable, numbers: tuple[int, ...]) -> str:
    return "\n".join(table.footnotes[number - 1] for number in numbers)


def test_without_measurements_it_is_the_published_table() -> None:
    table = table_of()
    assert [row.model for row in table.rows] == [row.label for row in PUBLISHED.table(1).rows]
    assert {row.source for row in table.rows} == {"published"}
    assert all(table.column_notes[column] for column in table.columns)
    cells = {(row.model, column): cell.value for row in table.rows for column, cell in row.cells.items()}
    assert cells["Qwen2.5-VL 7B", "mme"] == 2347
    assert ("o1", "mme") not in cells


def test_a_known_model_stands_below_its_published_row_and_ours_at_the_end() -> None:
    table = table_of(some_results(value=61.0), some_results(model=QWEN, value=58.0))
    names = [(row.model, row.source) for row in table.rows]
    place = names.index(("Qwen2.5-VL 7B", "published"))
    assert names[place + 1] == ("qwen2.5-vl-7b", "measured")
    assert names[-1] == ("mine (d1d1d1d1)", "measured")


def test_one_row_per_model_style_and_kind_of_crop() -> None:
    table = table_of(
        some_results("mmmu", model=QWEN),
        some_results("mme", model=QWEN, value=2300.0),
        some_results("mmmu", model=QWEN, style="look-again"),
        some_results("mmmu", model=QWEN, style="look-again", variant="low_resolution"),
        some_results("mmmu", model={"digest": "e2" * 32}),
        some_results("mmmu"),
    )
    rows = measured_rows(table)
    assert [(row.model, row.asked) for row in rows] == [
        ("qwen2.5-vl-7b", "direct"),
        ("qwen2.5-vl-7b", "look-again"),
        ("qwen2.5-vl-7b", "look-again, low_resolution"),
        ("mine (d1d1d1d1)", "direct"),
        ("mine (e2e2e2e2)", "direct"),
    ]
    assert set(rows[0].cells) == {"mmmu", "mme"}


def test_the_newest_run_counts_and_the_others_are_named() -> None:
    table = table_of(
        (some_results(value=50.0), 1.0), (some_results(value=52.0), 3.0), (some_results(value=51.0), 2.0)
    )
    (row,) = measured_rows(table)
    assert row.cells["mmmu"].value == 52
    said = notes_of(table, row.cells["mmmu"].notes)
    assert (
        "the newest of 3 runs; the others: 51.0 (validation, 900 rows), 50.0 (validation, 900 rows)" in said
    )


def test_a_partial_set_never_takes_the_place_of_a_whole_one() -> None:
    partial = {"num_rows": 10, "is_partial": True}
    table = table_of((some_results(value=50.0), 1.0), (some_results(value=90.0, data=partial), 2.0))
    (row,) = measured_rows(table)
    assert row.cells["mmmu"].value == 50
    assert "90.0 (validation, 10 rows)" in notes_of(table, row.cells["mmmu"].notes)


JUDGED = {
    **dict.fromkeys(("model", "endpoint", "version"), "j"),
    **{"num_asked": 40, "num_cached": 0, "num_failed": 1, "num_cut": 0, "num_scored": 899},
    **{"headline": {"value": 0.61, "low": 0.58, "high": 0.64}, "metrics": None, "metrics_note": ""},
}
DOUBTS = {
    "PARTIAL SET, 10 rows where validation has 900": {"data": {"num_rows": 10, "is_partial": True}},
    "UNSCORED ROWS, 880 of 900 have a score; 5 failed on our side, 15 were not asked": {
        "num_scored": 880,
        "num_failed": 5,
        "num_unasked": 15,
    },
    "no number. Half a pair.": {"value": None, "metrics_note": "Half a pair."},
    "12.5 % of the answers were cut off": {"truncation_rate": 0.125},
    "cannot read 40 of 900 answers, which count as wrong. No judge was asked.": {"needs_llm": 40},
    "count as wrong. With judge j, 61.0 % [58.0, 64.0] of 899 answers are right (1 without": {
        "needs_llm": 40,
        "judge": JUDGED,
    },
    "by the rule alone. With judge j, 61.0 %": {"judge": JUDGED},
    "25.0 % of the texts hold no answer": {"answer_rate": 0.75},
}


@pytest.mark.parametrize("says", DOUBTS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_keeps_a_number_from_being_the_benchmarks_is_said(says: str, name: str) -> None:
    table = table_of(some_results(**DOUBTS[says]))
    (row,) = measured_rows(table)
    (number,) = row.cells["mmmu"].notes
    assert says in table.footnotes[number - 1]
    shown = " ".join(FORMATS[name](table).split())
    assert says in shown


def test_a_clean_run_has_no_footnote() -> None:
    (row,) = measured_rows(table_of(some_results()))
    assert (row.notes, row.cells["mmmu"].notes) == ((), ())


MIXTURES = {
    "on different splits (ScienceQA-FULL/test, ScienceQA-IMG/test)": {
        "data": {"split": "ScienceQA-FULL/test"}
    },
    "on files that differ (data digest)": {"data": {"digest": "s2"}},
    "by different scorer versions (1, 2)": {"scorer_version": "2"},
}


@pytest.mark.parametrize("says", MIXTURES)
def test_a_column_of_unlike_measurements_says_so(says: str) -> None:
    other = some_results("scienceqa", model=QWEN, **MIXTURES[says])
    table = table_of(some_results("scienceqa"), other)
    assert says in notes_of(table, table.column_notes["scienceqa"])
    assert says not in "\n".join(table_of(other).footnotes)


def test_a_known_model_with_the_crop_tool_has_its_caution() -> None:
    table = table_of(some_results(model={"name": "mulberry-7b"}, style="look-again"))
    (row,) = measured_rows(table)
    assert "thousandths" in notes_of(table, row.notes)
    (row,) = measured_rows(table_of(some_results(model={"name": "mulberry-7b"})))
    assert row.notes == ()


def test_text_marks_rows_and_fits() -> None:
    lines = to_text(table_of(some_results("mme", model=QWEN, value=2323.7))).splitlines()
    assert max(map(len, lines)) <= TEXT_WIDTH
    assert "\n".join(lines).isascii()
    place = next(index for index, line in enumerate(lines) if line.startswith("qwen2.5-vl-7b"))
    assert "measured, direct" in lines[place]
    assert "2323.7" in lines[place]
    assert lines[place + 1].strip() == "[2321.7, 2325.7]"
    assert "published" in lines[place - 1]


def test_markdown_has_one_cell_per_column() -> None:
    text = to_markdown(table_of(some_results(model=QWEN, value=58.0)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {10}
    assert any("58.0 [56.0, 60.0]" in row for row in rows)
    assert any(row.startswith("| *Ours 7B") for row in rows)


def test_csv_has_a_line_per_number_with_its_notes() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table_of(some_results(value=58.0))))))
    published = [row for row in rows if row["source"] == "published"]
    assert len(published) == sum(len(row.values) for row in PUBLISHED.table(1).rows)
    assert all("several sources" in row["notes"] for row in published)
    (mine,) = (row for row in rows if row["source"] == "measured")
    found = (mine["benchmark"], mine["value"], mine["low"], mine["high"], mine["rows"])
    assert found == ("mmmu", "58.0", "56.0", "60.0", "900")


def test_html_is_well_formed_and_escaped() -> None:
    page = to_html(table_of(some_results(model={"path": "/models/<b>"})))

    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags.append(tag)

    reader = Cells()
    reader.feed(page)
    assert "b" not in reader.tags
    assert reader.tags.count("tr") == 13  # the head, 11 published, 1 measured
    assert reader.tags.count("td") == 12 * 9
    assert 'class="measured"' in page


def test_table_2_takes_measured_rows_too() -> None:
    table = table_of(some_results(value=61.0), number=2)
    assert table.columns == ("mathvista", "mmmu", "scienceqa", "docvqa", "average")
    (row,) = measured_rows(table)
    assert (row.cells["mmmu"].value, set(row.cells)) == (61, {"mmmu"})
