"""Published benchmarks read from small Parquet files of the true schema."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.benchmarks.published import PublishedSet, get_published
from models.benchmarks.scorer import BENCHMARKS, get_scorer
from models.benchmarks.sets import read_set, type_name
from models.errors import ConfigError, RecordError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> dict:
    """A picture as the hub stores it."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": f"{colour}.png"}


MMMU_ROW = {
    "id": "validation_Art_Theory_3",
    "question": "Which is older, <image 1> or <image 2>?",
    "options": "['the first', 'the second']",
    "explanation": "",
    **{f"image_{number}": None for number in range(1, 8)},
    "image_1": picture("red"),
    "image_2": picture("green"),
    "img_type": "['Paintings']",
    "answer": "A",
    "topic_difficulty": "Easy",
    "question_type": "multiple-choice",
    "subfield": "Art",
}
# Each benchmark's split, and two rows of it.
ROWS = {
    "mme": (
        "test",
        [
            {
                "question_id": "OCR/1.png",
                "image": picture("red"),
                "question": f"Is it {colour}? Please answer yes or no.",
                "answer": answer,
                "category": "OCR",
            }
            for colour, answer in (("red", "Yes"), ("blue", "No"))
        ],
    ),
    "mmmu": (
        "validation",
        [
            MMMU_ROW,
            {
                **MMMU_ROW,
                "id": "validation_Math_1",
                "image_2": None,
                "options": "[]",
                "answer": "['7', 'seven']",
                "question_type": "open",
            },
        ],
    ),
    "docvqa": (
        "DocVQA/validation",
        [
            {
                "questionId": str(number),
                "question": "Which year?",
                "question_types": ["handwritten"],
                "image": picture("white", (30, 60)),
                "docId": 7,
                "ucsf_document_id": "abc",
                "ucsf_document_page_no": "1",
                "answers": ["1999", "'99"],
                "data_split": "val",
            }
            for number in range(2)
        ],
    ),
    "scienceqa": (
        "ScienceQA-FULL/test",
        [
            {
                "image": shown,
                "question": "Which one is a metal?",
                "choices": ["glass", "tin"],
                "answer": 1,
                "hint": hint,
                **dict.fromkeys(("task", "grade", "topic", "category", "skill"), "x"),
                "subject": "natural science",
                "lecture": "Tin is a metal.",
                "solution": "It is B.",
            }
            for shown, hint in ((picture("grey"), ""), (None, "Look at the table."))
        ],
    ),
    "hallusionbench": (
        "image",
        [
            {
                "category": "VS",
                "subcategory": "chart",
                "visual_input": "1",
                "set_id": "0",
                "figure_id": "1",
                "sample_note": "",
                "question_id": str(number),
                "question": "Does the chart rise?",
                "gt_answer_details": "It falls.",
                "gt_answer": "0",
                "filename": "./VS/chart/0_1.png",
                "image": picture("red"),
            }
            for number in range(2)
        ],
    ),
    "mathvista": (
        "testmini",
        [
            {
                "pid": "1",
                "question": "How long is AB?",
                "image": "images/1.jpg",
                "decoded_image": picture("red"),
                "choices": choices,
                "unit": "cm",
                "precision": 1.0,
                "answer": "1.2",
                "question_type": question_type,
                "answer_type": "float",
                "metadata": {
                    **dict.fromkeys(
                        ("category", "context", "grade", "language", "source", "split", "task"), "x"
                    ),
                    "img_height": 30,
                    "img_width": 40,
                    "skills": ["geometry reasoning"],
                },
                "query": "Hint: round.\nQuestion: How long is AB? (Unit: cm)",
            }
            for choices, question_type in ((None, "free_form"), (["1.2", "1.3"], "multi_choice"))
        ],
    ),
    "mathvision": (
        "test",
        [
            {
                "id": str(number),
                "question": "How many?\n<image1>",
                "options": options,
                "image": "images/1.jpg",
                "decoded_image": picture("red"),
                "answer": "B",
                "solution": None,
                "level": 2,
                "subject": "counting",
            }
            for number, options in enumerate((["1", "2", "3", "4", "5"], ["A", "B", "C", "D", "E"]))
        ],
    ),
}
ROWS["mathvista"][1][1]["pid"] = "2"


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a declared one."""
    if name == "image":
        return IMAGE
    if name.startswith("list<"):
        return pa.list_(arrow_type(name.removeprefix("list<").removesuffix(">")))
    if name.startswith("struct<"):
        fields = [
            field.split(": ", 1) for field in name.removeprefix("struct<").removesuffix(">").split(", ")
        ]
        return pa.struct([(field, arrow_type(kind)) for field, kind in fields])
    return {"string": pa.string(), "int8": pa.int8(), "int64": pa.int64(), "float64": pa.float64()}[name]


def schema_of(published: PublishedSet) -> pa.Schema:
    return pa.schema([(name, arrow_type(kind)) for name, kind in published.columns.items()])


def small(name: str) -> tuple[PublishedSet, str, list[dict]]:
    """The benchmark as if it had been published with its two rows here."""
    split, rows = ROWS[name]
    return replace(get_published(name), splits={split: len(rows)}), split, rows


def write(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def file_name(split: str, shard: int = 0, num_shards: int = 1) -> str:
    return f"{split.rpartition('/')[2]}-{shard:05d}-of-{num_shards:05d}.parquet"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_read_asked_and_scored(name, tmp_path):
    published, split, rows = small(name)
    assert split in get_published(name).splits
    # Where a clone of the hub has the files.
    folder = split.rpartition("/")[0] or "data"
    write(tmp_path / folder / file_name(split), rows, schema_of(published))
    found = read_set(published, tmp_path, split)
    assert not found.is_partial
    assert found.describe() | {"digest": ""} == {
        "benchmark": name,
        "source": published.source,
        "split": split,
        "num_rows": 2,
        "num_published_rows": 2,
        "is_partial": False,
        "digest": "",
    }
    scorer = get_scorer(name)
    for each in found.questions():
        assert each.text("direct")
        assert "single word" not in each.text("look-again")
        assert "letter" not in each.text("look-again")
        gold = published.answers(each.row)[0]
        assert set(scorer.score(each.row, gold))
        if len(each.pictures) == 1:
            question = each.question("look-again")
            assert question.image().size == (question.width, question.height)
            assert question.text == each.text("look-again")
            assert question.answers == published.answers(each.row)


def test_shards_are_read_in_order_and_any_number_of_them_gives_one_digest(tmp_path):
    published, split, rows = small("mme")
    schema = schema_of(published)
    for shard, row in enumerate(rows):
        write(tmp_path / "two" / file_name(split, shard, 2), [row], schema)
    write(tmp_path / "one" / file_name(split), rows, schema)
    two, one = (read_set(published, tmp_path / name, split) for name in ("two", "one"))
    assert [each.id for each in two.questions()] == ["OCR/1.png#0", "OCR/1.png#1"]
    assert two.digest == one.digest
    assert len(two.digest) == 64


@pytest.mark.parametrize(
    "change",
    [{"question": "Is it?"}, {"answer": "No"}, {"question_id": "OCR/2.png"}, {"image": picture("blue")}],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_covers_what_defines_the_set(change, tmp_path):
    published, split, rows = small("mme")
    write(tmp_path / "old" / file_name(split), rows, schema_of(published))
    write(tmp_path / "new" / file_name(split), [{**rows[0], **change}, rows[1]], schema_of(published))
    old, new = (read_set(published, tmp_path / name, split) for name in ("old", "new"))
    assert old.digest != new.digest


def test_other_columns_are_refused_and_named(tmp_path):
    published, split, _ = small("mme")
    schema = pa.schema(
        [
            ("question_id", pa.int64()),
            ("image", pa.string()),
            ("question", pa.string()),
            ("label", pa.string()),
        ]
    )
    write(tmp_path / file_name(split), [dict.fromkeys(schema.names)] * 2, schema)
    with pytest.raises(RecordError) as caught:
        read_set(published, tmp_path, split)
    for problem in (
        "answer is missing",
        "category is missing",
        "label is unexpected",
        "question_id is int64 instead of string",
        "image is string instead of image",
    ):
        assert problem in str(caught.value)


def test_every_file_is_checked(tmp_path):
    published, split, rows = small("mme")
    schema = schema_of(published)
    write(tmp_path / file_name(split, 0, 2), rows[:1], schema)
    write(tmp_path / file_name(split, 1, 2), rows[1:], schema.remove(schema.get_field_index("answer")))
    with pytest.raises(RecordError, match=r"00001-of-00002.*answer is missing"):
        read_set(published, tmp_path, split)


def test_a_column_without_values_has_no_type(tmp_path):
    published, split, rows = small("mathvision")
    schema = schema_of(published)
    place = schema.get_field_index("solution")
    write(tmp_path / file_name(split), rows, schema.set(place, pa.field("solution", pa.null())))
    assert read_set(published, tmp_path, split).num_rows == 2


def test_missing_rows_are_refused_unless_asked_for(tmp_path):
    published, split, rows = small("mme")
    write(tmp_path / file_name(split), rows[:1], schema_of(published))
    with pytest.raises(RecordError, match="1 rows in 1 files; mme has 2"):
        read_set(published, tmp_path, split)
    found = read_set(published, tmp_path, split, allow_partial=True)
    assert found.is_partial
    assert found.describe()["is_partial"] is True


def test_an_empty_set_is_refused_even_as_a_part(tmp_path):
    published, split, _ = small("mme")
    write(tmp_path / file_name(split), [], schema_of(published))
    with pytest.raises(RecordError, match="0 rows"):
        read_set(published, tmp_path, split, allow_partial=True)


def test_a_file_that_is_there_twice_is_found_by_its_ids(tmp_path):
    published, split, rows = small("docvqa")
    for shard in range(2):
        write(tmp_path / file_name(split, shard, 2), rows, schema_of(published))
    with pytest.raises(RecordError, match="'0' occurs more than once"):
        read_set(published, tmp_path, split, allow_partial=True)


def test_the_thirty_folders_of_mmmu_make_one_set(tmp_path):
    published, split, rows = small("mmmu")
    for subject, row in zip(("Art_Theory", "Math"), rows, strict=True):
        write(tmp_path / subject / file_name(split), [row], schema_of(published))
        # Another split beside it does not count.
        write(tmp_path / subject / file_name("dev"), [row], schema_of(published))
    found = list(read_set(published, tmp_path, split).questions())
    assert [each.id for each in found] == ["validation_Art_Theory_3", "validation_Math_1"]


def test_configurations_of_scienceqa_are_not_mixed(tmp_path):
    published, split, rows = small("scienceqa")
    write(tmp_path / "ScienceQA-FULL" / file_name(split), rows, schema_of(published))
    write(tmp_path / "ScienceQA-IMG" / file_name(split), rows[:1], schema_of(published))
    assert read_set(published, tmp_path, split).num_rows == 2
    assert read_set(published, tmp_path / "ScienceQA-FULL", split).num_rows == 2


def test_several_pictures_are_kept_but_make_no_question(tmp_path):
    published, split, rows = small("mmmu")
    write(tmp_path / file_name(split), rows, schema_of(published))
    several, single = read_set(published, tmp_path, split).questions()
    assert several.pictures == (rows[0]["image_1"]["bytes"], rows[0]["image_2"]["bytes"])
    with pytest.raises(RecordError, match="has 2 pictures"):
        several.question("direct")
    assert single.question("direct").answers == ("7", "seven")
    assert single.question("direct").kind == "Math"


def test_a_question_without_picture_keeps_its_place(tmp_path):
    published, split, rows = small("scienceqa")
    write(tmp_path / file_name(split), rows, schema_of(published))
    pictured, plain = read_set(published, tmp_path, split).questions()
    assert (pictured.row["_has_image"], plain.row["_has_image"]) == (True, False)
    with pytest.raises(RecordError, match="has 0 pictures"):
        plain.question("direct")


def test_prompts():
    def prompts(name: str, index: int = 0) -> tuple[str, str]:
        row = ROWS[name][1][index]
        published = get_published(name)
        return published.prompt(row, "direct"), published.prompt(row, "look-again")

    assert prompts("mme") == (
        "Is it red?\nAnswer the question using a single word or phrase.",
        "Is it red? Please answer yes or no.",
    )
    assert prompts("docvqa") == (
        "Which year?\nAnswer the question using a single word or phrase.",
        "Which year?",
    )
    assert prompts("scienceqa", 1) == (
        "Context: Look at the table.\nWhich one is a metal?\nA. glass\nB. tin\n"
        "Answer with the option's letter from the given choices directly.",
        "Context: Look at the table.\nWhich one is a metal?\nA. glass\nB. tin",
    )
    assert prompts("hallusionbench") == ("Does the chart rise?", "Does the chart rise?")
    question = "Which is older, <image 1> or <image 2>?"
    assert prompts("mmmu") == (
        f"{question}\nA. the first\nB. the second\n\n"
        "Answer with the option's letter from the given choices directly.",
        f"{question}\nA. the first\nB. the second",
    )
    assert prompts("mmmu", 1) == (
        f"{question}\n\nAnswer the question using a single word or phrase.",
        question,
    )


def test_prompts_of_mathematics():
    vista, vision = get_published("mathvista"), get_published("mathvision")
    free, choice = ROWS["mathvista"][1]
    assert vista.direct(free) == free["query"]
    assert vista.look_again(free) == "How long is AB? (Unit: cm)"
    assert vista.look_again(choice) == "How long is AB? (Unit: cm)\n(A) 1.2\n(B) 1.3"
    options, labels = ROWS["mathvision"][1]
    request = (
        'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple '
        'choice question, only one letter is allowed in the "\\boxed{}".\n'
    )
    lines = "(A) 1\n(B) 2\n(C) 3\n(D) 4\n(E) 5"
    assert vision.direct(options) == f"{request}How many?\n<image1>\n{lines}\n"
    assert vision.look_again(options) == f"How many?\n<image1>\n{lines}"
    # The labels are in the picture.
    assert vision.direct(labels) == f"{request}How many?\n<image1>\n"
    assert vision.look_again(labels) == "How many?\n<image1>"


def test_what_the_authors_keep_is_no_answer():
    assert get_published("mmmu").answers({**MMMU_ROW, "answer": "?"}) == ()
    assert get_published("docvqa").answers({"answers": None}) == ()
    assert get_published("mathvista").answers({"answer": ""}) == ()


def test_pictures_that_are_only_paths_are_refused(tmp_path):
    published, split, rows = small("mme")
    rows = [{**row, "image": {"bytes": None, "path": "red.png"}} for row in rows]
    write(tmp_path / file_name(split), rows, schema_of(published))
    with pytest.raises(RecordError, match=r"only a path \('red.png'\)"):
        read_set(published, tmp_path, split)


def test_a_picture_that_is_none_is_refused_when_asked(tmp_path):
    published, split, rows = small("mme")
    rows = [{**row, "image": {"bytes": b"no picture", "path": None}} for row in rows]
    write(tmp_path / file_name(split), rows, schema_of(published))
    first = next(read_set(published, tmp_path, split).questions())
    with pytest.raises(RecordError, match="does not open"):
        first.question("direct")


def test_missing_and_broken_files_are_named(tmp_path):
    published, split, _ = small("mme")
    with pytest.raises(RecordError, match="no Parquet file of split 'test'"):
        read_set(published, tmp_path, split)
    (tmp_path / file_name(split)).write_bytes(b"PAR1")
    with pytest.raises(RecordError, match="is no Parquet file"):
        read_set(published, tmp_path, split)
    with pytest.raises(RecordError, match="no split 'train', only test"):
        read_set(published, tmp_path, "train")


def test_an_unknown_benchmark_lists_the_seven():
    with pytest.raises(ConfigError, match="mme, mmmu, mathvista, mathvision, scienceqa, docvqa"):
        get_published("gqa")


def test_types_are_named_as_on_the_cards():
    assert type_name(pa.large_string()) == "string"
    assert type_name(pa.large_list(pa.large_string())) == "list<string>"
    assert type_name(pa.struct([("b", pa.int64()), ("a", pa.list_(pa.string()))])) == (
        "struct<a: list<string>, b: int64>"
    )
    assert type_name(IMAGE) == "image"
    assert type_name(pa.float64()) == "float64"


def test_published_sizes():
    sizes = {name: dict(get_published(name).splits) for name in BENCHMARKS}
    assert sizes["mme"] == {"test": 2374}
    assert sizes["mmmu"]["validation"] == 900
    assert sizes["mathvista"] == {"testmini": 1000, "test": 5141}
    assert sizes["mathvision"] == {"test": 3040, "testmini": 304}
    assert sizes["scienceqa"]["ScienceQA-IMG/test"] == 2017
    assert sizes["docvqa"]["DocVQA/validation"] == 5349
    assert sizes["hallusionbench"] == {"image": 951, "non_image": 178}
