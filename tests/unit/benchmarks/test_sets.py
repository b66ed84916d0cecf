"""Published benchmarks read from small Parquet files of the true schema."""

import pyarrow as pa
import pytest

from models.benchmarks.published import get_published
from models.benchmarks.scorer import BENCHMARKS, get_scorer
from models.benchmarks.sets import read_set, type_name
from models.errors import ConfigError, RecordError
from tests.benchmark_examples import IMAGE, MMMU_ROW, ROWS, file_name, picture, schema_of, small, write


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
        assert each.prompt("direct").text
        prompt = each.prompt("look-again")
        assert "single word" not in prompt.text
        assert "letter" not in prompt.text
        gold = published.answers(each.row)[0]
        assert set(scorer.score(each.row, gold))
        assert sorted(prompt.numbers) == list(each.pictures)
        assert all(each.image(number).mode == "RGB" for number in prompt.numbers)


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


def test_several_pictures_stand_where_the_text_names_them(tmp_path):
    published, split, rows = small("mmmu")
    write(tmp_path / file_name(split), rows, schema_of(published))
    several, single = read_set(published, tmp_path, split).questions()
    assert several.pictures == {1: rows[0]["image_1"]["bytes"], 2: rows[0]["image_2"]["bytes"]}
    colours = {1: (255, 0, 0), 2: (0, 128, 0)}
    assert {number: several.image(number).getpixel((0, 0)) for number in (1, 2)} == colours
    asked = several.prompt("look-again")
    options = "\nA. the first\nB. the second"
    assert asked.text == f"Which is older, Image 1:  or Image 2: ?{options}"
    assert [asked.text[place - 9 : place] for place in asked.places] == ["Image 1: ", "Image 2: "]
    assert several.prompt("direct").text.startswith(f"Which is older,  or ?{options}\n")
    # The second mark of the single row names a picture that it does not have.
    assert single.prompt("direct").text.startswith("Which is older,  or <image 2>?\n")
    assert single.prompt("look-again").places == (16,)


def test_a_question_without_picture_keeps_its_place(tmp_path):
    published, split, rows = small("scienceqa")
    write(tmp_path / file_name(split), rows, schema_of(published))
    pictured, plain = read_set(published, tmp_path, split).questions()
    assert (pictured.row["_has_image"], plain.row["_has_image"]) == (True, False)
    assert (pictured.prompt("direct").places, plain.prompt("direct").places) == ((0,), ())


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
    with pytest.raises(RecordError, match="picture 1 does not open"):
        first.image(1)


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
