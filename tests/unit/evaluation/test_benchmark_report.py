"""The page about a benchmark."""

from pathlib import Path

from models.evaluation.report_page import read_gallery
from tests.report_examples import make_benchmark_page


def test_the_page_shows_every_row_with_its_pictures_its_boxes_and_its_score(tmp_path: Path) -> None:
    gallery = read_gallery(make_benchmark_page(tmp_path))
    (rows,) = gallery["sets"]
    assert [column["label"] for column in rows["columns"]] == ["embedded", "embedded (earlier)"]
    questions = {question["id"]: question for question in rows["questions"]}
    two = questions["validation_Art_Theory_3"]
    assert len(two["pictures"]) == 2
    assert two["answers"] == ["A"]
    attempt = two["attempts"]["model"]
    assert (attempt["right"], attempt["score"], attempt["answer"]) == (True, 1.0, "A")
    assert [(box["image"], box["error"]) for box in attempt["boxes"]] == [(2, None)]
    (crop,) = [part["crop"] for part in attempt["parts"] if "crop" in part]
    assert crop in gallery["pictures"]
    one = questions["validation_Math_1"]
    assert len(one["pictures"]) == 1
    assert (one["attempts"]["model"]["right"], one["attempts"]["model"]["score"]) == (False, 0.0)


def test_the_page_begins_with_the_number_and_its_interval(tmp_path: Path) -> None:
    page = make_benchmark_page(tmp_path).read_text()
    # One of two right; Wilson's interval of 1 of 2 is 9.5 to 90.5.
    assert "50.0 %</h2><p>95 % interval 9.5 to 90.5, over 2 rows." in page
    assert "embedded on mmmu" in page
    assert "WARNING" not in page
