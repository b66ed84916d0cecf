"""Each planted fault of a stored row is found, and nothing else is blamed for it."""

from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import RecordError
from models.records import RECORD_SCHEMA, png_bytes, sha256, write_records
from models.vlir.checks import Rules, check_record, read_manifest, record_files
from models.vlir.set_checks import check_columns

BOX = [10.0, 10.0, 20.0, 18.0]


@pytest.fixture
def row(sound_record, tmp_path) -> dict:
    """The stored form of a sound record."""
    write_records(tmp_path / "one.parquet", [sound_record])
    (stored,) = pq.read_table(tmp_path / "one.parquet").to_pylist()
    return stored


def _findings(row, look, **rules) -> set[str]:
    """Names of the checks that fail."""
    finding = asdict(check_record(row, Rules(look, **rules)))
    failed = {name for name, value in finding.items() if value is False}
    failed |= {name for name in ("held_out_in", "foreign_text") if finding[name]}
    if finding["num_crops"] != finding["num_boxes_in_text"]:
        failed.add("crops_equal_boxes")
    if finding["num_answers"] != 1:
        failed.add("one_answer")
    return failed


def test_a_sound_row_has_no_finding(row, look):
    assert _findings(row, look) == set()


def _first_step(row, **changes):
    return {**row, "steps": [{**row["steps"][0], **changes}, *row["steps"][1:]]}


@pytest.mark.parametrize(
    "corners", [[20.0, 10.0, 10.0, 18.0], [100.0, 10.0, 120.0, 18.0], [10.0, 10.0, 11.0, 18.0], [1.0]]
)
def test_bad_stored_boxes(row, look, corners):
    assert _findings(_first_step(row, box=corners), look) == {"boxes_are_inside", "boxes_are_those_in_text"}


def test_a_box_that_differs_from_the_text(row, look):
    assert _findings(_first_step(row, box=BOX), look) == {"boxes_are_those_in_text"}


def test_a_box_in_the_text_without_a_crop(row, look):
    assert _findings(_first_step(row, box=None), look) == {
        "crops_equal_boxes",
        "boxes_are_those_in_text",
        "steps_take_turns",
    }


def test_a_box_that_does_not_parse(row, look):
    broken = row["steps"][0]["text"].replace("]}", "}")
    found = _findings(_first_step(row, text=broken), look)
    assert found == {"boxes_parse", "boxes_are_those_in_text"}


def test_two_answers(row, look):
    last = {**row["steps"][1], "text": row["steps"][1]["text"] + f"<answer>{row['final_answer']}</answer>"}
    assert _findings({**row, "steps": [row["steps"][0], last]}, look) == {"is_well_formed", "one_answer"}


def _with_last(row, text):
    return {**row, "steps": [row["steps"][0], {**row["steps"][1], "text": text}]}


def test_words_after_the_answer(row, look):
    text = row["steps"][1]["text"] + " I am sure."
    assert _findings(_with_last(row, text), look) == {"is_well_formed", "ends_with_answer"}


def test_a_crop_in_the_last_step(row, look):
    first, last = row["steps"]
    only = {"text": first["text"] + last["text"], "box": first["box"]}
    assert _findings({**row, "steps": [only]}, look) == {"steps_take_turns", "steps_end_with_a_box"}


def test_a_look_after_the_thinking(row, look):
    first, last = row["steps"]
    early = {**first, "text": first["text"].replace("<think>", "<think>I know.</think>")}
    late = {**last, "text": last["text"].replace("</think>", "")}
    assert _findings({**row, "steps": [early, late]}, look) == {"steps_take_turns", "is_well_formed"}


def test_words_between_a_command_and_its_crop(row, look):
    spoken = row["steps"][0]["text"] + " Let me see."
    assert _findings(_first_step(row, text=spoken), look) == {"steps_end_with_a_box"}


def test_a_rationale_in_another_language_or_script(row, look):
    french = f" Je regarde la carte de plus près et je lis le code {row['final_answer']} dessus."
    rest = f"</think><answer>{row['final_answer']}</answer>"
    texts = {"scripts": ("LATIN",), "min_script_share": 0.5, "languages": ("en",)}
    assert _findings(row, look, **texts) == set()
    assert _findings(_with_last(row, french + rest), look, **texts) == {"foreign_text"}
    assert _findings(_with_last(row, french + rest), look, languages=("fr", "en")) == set()
    asked = {**row, "text": "这张卡片上写的是什么代码"}
    assert check_record(asked, Rules(look, **texts)).foreign_text == "not LATIN"


def test_lengths_are_counted_without_tags_commands_and_outer_blanks(row, look):
    found = check_record({**row, "text": "  what? "}, Rules(look))
    assert found.question_characters == len("what?")
    spoken = f"I look closer at the card.  It says {row['final_answer']}."
    assert found.rationale_characters == len(spoken)


@pytest.mark.parametrize(
    "change", [{"final_answer": "W1"}, {"answers": ["W1"]}, {"answers": []}, {"answers": None}]
)
def test_an_answer_that_is_not_the_gold(row, look, change):
    assert _findings({**row, **change}, look) == {"answer_matches_gold"}


def test_a_picture_whose_bytes_changed(row, look):
    damaged = {**row, "image": {**row["image"], "bytes": row["image"]["bytes"][:-20]}}
    assert _findings(damaged, look) == {"image_is_intact"}


def test_a_truncated_picture_with_a_right_hash(row, look):
    data = row["image"]["bytes"][: len(row["image"]["bytes"]) // 2]
    damaged = {**row, "image": {**row["image"], "bytes": data}, "image_sha256": sha256(data)}
    assert _findings(damaged, look) == {"image_is_intact"}


def test_a_picture_of_another_size_than_stated(row, look, drawn):
    data = png_bytes(drawn[0].question.image().resize((224, 448)))
    other = {**row, "image": {**row["image"], "bytes": data}, "image_sha256": sha256(data)}
    assert _findings(other, look) == {"image_is_intact"}


def test_a_missing_picture(row, look):
    assert _findings({**row, "image": None}, look) == {"image_is_intact"}


def test_a_picture_that_is_held_out(row, look):
    held_out = {row["image_sha256"]: "mme"}
    assert _findings(row, look, held_out=held_out) == {"held_out_in"}
    assert check_record(row, Rules(look, held_out=held_out)).held_out_in == "mme"


def test_boxes_that_refer_to_another_size_than_the_model_sees(row, look):
    assert _findings({**row, "seen_width": 224, "seen_height": 224}, look) == {"seen_size_follows_look"}


def test_a_rejected_row_among_the_accepted(row, look):
    assert _findings({**row, "reason": "wrong_answer"}, look) == {"was_accepted"}


def test_an_empty_row_is_a_finding_and_no_crash(row, look):
    empty = dict.fromkeys(row)
    assert "image_is_intact" in _findings(empty, look)
    assert check_record(empty, Rules(look)).id == ""


def _columns(tmp_path, table: pa.Table) -> dict[str, tuple[str, str]]:
    folder = tmp_path / "records"
    folder.mkdir()
    pq.write_table(table, folder / "shard.parquet")
    return {
        item.id: (item.found, item.expected)
        for item in check_columns(tmp_path)
        if item.found != item.expected
    }


def _table(row) -> pa.Table:
    return pa.Table.from_pylist([row], schema=RECORD_SCHEMA.with_metadata({"schema_version": "vlir/1"}))


def test_right_columns_have_no_finding(row, tmp_path):
    assert _columns(tmp_path, _table(row)) == {}


def test_wrong_columns_are_named_with_both_types(row, tmp_path):
    table = _table(row)
    table = table.drop_columns(["teacher"]).append_column("note", pa.array(["x"]))
    table = table.set_column(table.schema.get_field_index("width"), "width", pa.array([448], pa.int64()))
    assert _columns(tmp_path, table.replace_schema_metadata({})) == {
        "shard.parquet:schema_version": ("missing", "vlir/1"),
        "shard.parquet:teacher": ("missing", "string"),
        "shard.parquet:note": ("string", "missing"),
        "shard.parquet:width": ("int64", "int32"),
    }


def test_an_unfinished_build_is_refused(tmp_path):
    with pytest.raises(RecordError, match="did not finish"):
        read_manifest(tmp_path)
    with pytest.raises(RecordError, match="no Parquet file"):
        record_files(tmp_path)
