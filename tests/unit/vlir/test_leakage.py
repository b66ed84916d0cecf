"""What an evaluation set and a training sample may not share."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from models.benchmarks.published import PublishedSet, get_published
from models.errors import ConfigError, RecordError
from models.pictures import ReadPicture, read_picture
from models.vlir.leakage import HeldOut
from models.vlir.sources.base import Sample
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests.benchmark_examples import ROWS, schema_of, write
from tests.source_examples import M3COT, m3cot, write_parquet


def write_set(published: PublishedSet, folder: Path, split: str, rows: list[dict]) -> None:
    write(folder / f"{split}-00000-of-00001.parquet", rows, schema_of(published))


def page(seed: int, size: tuple[int, int] = (340, 440)) -> Image.Image:
    """A page of writing: white, with dark marks in lines."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for top in range(20, size[1] - 20, 16):
        for left in range(20, size[0] - 40, 14):
            if rng.random() < 0.7:
                draw.rectangle((left, top, left + int(rng.integers(3, 11)), top + 8), "black")
    return image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


PAGE = page(0)
DISTINCTIVE = "What is the name of the chairman of the committee?"
"""Ten words."""


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    folder = tmp_path_factory.mktemp("held_out")
    (document, _) = ROWS["docvqa"][1]
    asked = [
        ("1", PAGE, DISTINCTIVE, ["Dr. Jane Roe"]),
        ("2", PAGE, "What is the title?", ["Annual report"]),
        # A stock question: asked of two pictures.
        ("3", PAGE, "What is the number at the bottom of the page?", ["12"]),
        ("4", page(1), "What is the number at the bottom of the page?", ["Roe"]),
        ("5", page(2), "Is there any signature at the bottom of this page?", ["yes"]),
    ]
    rows = [
        {
            **document,
            "questionId": id,
            "question": question,
            "answers": answers,
            "image": {"bytes": encoded(image), "path": "page.png"},
        }
        for id, image, question, answers in asked
    ]
    write_set(get_published("docvqa"), folder / "docvqa", "DocVQA/validation", rows)
    science = {
        **ROWS["scienceqa"][1][0],
        "question": "Which of these organisms contains matter that was once part of the lichen?",
        "choices": ["bilberry", "mushroom"],
        "answer": 1,
    }
    write_set(get_published("scienceqa"), folder / "scienceqa", "ScienceQA-IMG/test", [science])
    return HeldOut.read({"docvqa": folder / "docvqa", "scienceqa": str(folder / "scienceqa")})


def leak(held_out: HeldOut, image: bytes, text: str, *answers: str, question: str = "") -> str | None:
    picture = read_picture(image, max_pixels=10**6, max_bytes=10**7)
    sample = Sample(0, "s", text, answers or ("x",), image, "p", question=question)
    return held_out.find_leak(sample, [picture])


OTHER = encoded(page(7))
OTHER_IMAGE = {"bytes": OTHER, "path": "other.png"}


def test_nothing_shared_is_no_leak(held_out):
    assert leak(held_out, OTHER, "What is the colour of the car?", "red") is None


def test_the_same_file_is_a_leak_whatever_is_asked(held_out):
    found = leak(held_out, encoded(PAGE), "another question")
    assert found == "docvqa DocVQA/validation '1': the same picture (file)"


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (encoded(PAGE, "BMP"), "pixels"),
        (encoded(PAGE, compress_level=0), "pixels"),
        (encoded(PAGE, "JPEG", quality=90), "compressed again"),
        (encoded(PAGE, "JPEG", quality=60), "compressed again"),
        (encoded(PAGE, "WEBP", quality=70), "compressed again"),
    ],
    ids=["bmp", "png", "jpeg", "poor jpeg", "webp"],
)
def test_the_same_picture_in_another_file_is_a_leak(held_out, data, how):
    assert leak(held_out, data, "another question") == (
        f"docvqa DocVQA/validation '1': the same picture ({how})"
    )


def test_another_page_of_the_same_size_is_no_leak(held_out):
    changed = PAGE.copy()
    ImageDraw.Draw(changed).rectangle((100, 100, 111, 108), "red")
    for image in (page(8), changed):
        assert leak(held_out, encoded(image), "another question") is None


def test_the_same_question_about_a_resized_picture_is_a_leak(held_out):
    small = encoded(PAGE.resize((272, 352), Image.Resampling.LANCZOS), "JPEG")
    assert leak(held_out, small, "another question") is None
    found = leak(held_out, small, "what is the TITLE", "something else")
    assert found == "docvqa DocVQA/validation '2': the same question about a picture that looks alike"


@pytest.mark.parametrize(
    "text",
    [
        DISTINCTIVE,
        "what is the name  of the Chairman of the committee",
        f"{DISTINCTIVE}\nAnswer the question using a single word or phrase.",
    ],
)
def test_a_distinctive_question_with_its_answer_is_a_leak(held_out, text):
    found = leak(held_out, OTHER, text, "nobody", "dr. jane roe")
    assert found == "docvqa DocVQA/validation '1': the same question and answer"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (DISTINCTIVE, "John Doe"),
        ("What is the title?", "Annual report"),  # four words
        ("What is the number at the bottom of the page?", "12"),  # asked of two pictures
        ("Is there any signature at the bottom of this page?", "yes"),  # ten words, answered by chance
    ],
)
def test_a_stock_question_is_no_leak(held_out, text, answer):
    assert leak(held_out, OTHER, text, answer) is None


def test_options_count_in_any_order(held_out):
    question = "Which of these organisms contains matter that was once part of the lichen?"
    text = f"Context: Look.\n{question}\nA. mushroom\nB. bilberry\nAnswer with the option's letter."
    found = leak(held_out, OTHER, text, "A", question=question)
    assert found == "scienceqa ScienceQA-IMG/test 'scienceqa-00000': the same question and answer"
    assert leak(held_out, OTHER, text, "B", question=question) is None
    other = text.replace("bilberry", "grizzly bear")
    assert leak(held_out, OTHER, other, "A", question=question) is None


def test_of_several_pictures_each_counts(held_out):
    sample = Sample(0, "s", "another question", ("x",), OTHER, "p")
    pictures = [read_picture(data, max_pixels=10**6, max_bytes=10**7) for data in (OTHER, encoded(PAGE))]
    assert "the same picture (file)" in str(held_out.find_leak(sample, pictures))


def test_a_file_is_compared_without_decoding(held_out):
    sample = Sample(0, "s", "another question", ("x",), encoded(PAGE), "p")
    assert "the same picture (file)" in str(held_out.find_leak(sample))


def test_a_held_out_picture_that_does_not_decode_is_known_by_its_file(tmp_path: Path):
    (document, _) = ROWS["docvqa"][1]
    rows = [{**document, "image": {"bytes": b"no picture", "path": "x.png"}}]
    write_set(get_published("docvqa"), tmp_path, "DocVQA/validation", rows)
    held_out = HeldOut.read({"docvqa": tmp_path})
    sample = Sample(0, "s", "q", ("x",), b"no picture", "p")
    assert "the same picture (file)" in str(held_out.find_leak(sample))


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(RecordError, match="no Parquet file of split"):
        HeldOut.read({"docvqa": tmp_path})
    with pytest.raises(ConfigError, match="'nothing' is unknown"):
        HeldOut.read({"nothing": tmp_path})
    path = tmp_path / "DocVQA" / "test-0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"question": ["?"]}), path)
    write_set(get_published("docvqa"), tmp_path, "DocVQA/validation", ROWS["docvqa"][1])
    with pytest.raises(RecordError, match="questionId is missing"):
        HeldOut.read({"docvqa": tmp_path})


def test_a_picture_is_decoded_upright_and_whole(held_out):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = PAGE.transpose(Image.Transpose.ROTATE_90)
    data = encoded(turned, exif=exif)
    read: ReadPicture = read_picture(data, max_pixels=10**6, max_bytes=10**7)
    assert read.image.size == PAGE.size
    assert "pixels" in str(leak(held_out, data, "another question"))


def test_m3cots_questions_are_found_in_scienceqa(held_out, tmp_path: Path):
    lichen = "Which of these organisms contains matter that was once part of the lichen?"
    rows = [
        m3cot(
            id="science-1", question=lichen, choices=["bilberry", "mushroom"], answer="B", image=OTHER_IMAGE
        ),
        m3cot(id="science-2", image=OTHER_IMAGE),
    ]
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", M3COT, rows)
    source = open_source(SourceConfig(kind="m3cot", data=str(tmp_path)), max_picture_bytes=10**6)
    leaks = [held_out.find_leak(sample) for sample in source.rows()]
    assert leaks == [
        "scienceqa ScienceQA-IMG/test 'scienceqa-00000': the same question and answer",
        None,
    ]
