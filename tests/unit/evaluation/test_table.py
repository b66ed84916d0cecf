"""The final table, from results whose numbers are fixed in conftest."""

import csv
import io

import pytest

from models.config import EvaluationConfig
from models.evaluation.results import Results
from models.evaluation.table import TEXT_WIDTH, describe, main_comparisons, to_csv, to_markdown, to_text
from models.evaluation.variants import pipeline_comparisons, pipeline_variants


def test_text_shows_each_row_with_its_numbers(results):
    lines = to_text(results).splitlines()
    row, cost = [line for line in lines if line.startswith("R-GRPO  ")]
    # 76.2 on read is 0.742 + 0.02; add is 0.742 - 0.3; mean@8 is 0.742 - 0.1.
    assert row.split() == [
        *("R-GRPO", "76.2", "[72.2,", "80.2]", "74.2", "[70.2,", "78.2]", "44.2", "90.0", "64.2"),
        *("98.4", "94.3", "0.71", "13.2x9.4", "9.5", "1.07", "600"),
    ]
    assert "mean@8" in lines[1]
    # Gold boxes found, crops with the answer, cut off, protocol errors, tokens and seconds per question.
    assert cost.split() == ["R-GRPO", "88.0", "91.0", "2.0", "1.0", "31.5", "0.25"]
    assert f"questions {'d' * 12}, scorer exact-match 3, seed 0." in lines


def test_text_fits_150_columns_and_any_encoding(results):
    pair = results.comparisons[0].model_copy(
        update={
            "old": "no_crop",
            "difference": results.comparisons[0].difference.model_copy(update={"low": -0.1}),
        }
    )
    both = (pair, pair.model_copy(update={"kind": "read"}))
    text = to_text(results.model_copy(update={"comparisons": both}))
    assert text.isascii()
    assert "no clear difference" in text
    assert max(map(len, text.splitlines())) <= TEXT_WIDTH


def test_what_has_no_meaning_is_a_dash_not_a_zero(results):
    row, _ = [line for line in to_text(results).splitlines() if line.startswith("no crop injected")]
    cells = row.split()
    # mean@8, crop size and crop tokens; crops per question is a real 0.
    assert cells[-8] == "-"
    assert cells[-4:] == ["-", "-", "0.00", "300"]


def test_ablations_are_announced_with_the_row_whose_weights_they_share(results):
    lines = to_text(results).splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("no crop injected"))
    assert lines[index - 1] == "crop commands of R-GRPO answered in other ways:"


def test_models_come_before_ablations_whatever_was_measured_first(results):
    champion = results.variants[1].model_copy(update={"name": "champion", "label": "champion"})
    lines = to_text(results.model_copy(update={"variants": (*results.variants, champion)})).splitlines()
    first_words = [line.split("  ")[0] for line in lines[3:9]]
    announced = "crop commands of R-GRPO answered in other ways:"
    assert first_words == ["base (look-again)", "SFT", "R-GRPO", "champion", announced, "no crop injected"]


def test_differences_come_with_interval_questions_and_verdict(results):
    assert [describe(results, found) for found in main_comparisons(results)] == [
        "R-GRPO - SFT, all: +15.2 [+11.0, +19.3], n = 600: better",
        "R-GRPO - SFT, read: +15.2 [+11.0, +19.3], n = 504: better",
    ]
    assert "R-GRPO - SFT  all +15.2 [+11.0, +19.3], n = 600: better" in to_text(results)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.01, 0.2, "no clear difference"),
        (0.0, 0.2, "no clear"),
    ],
)
def test_verdict_follows_the_interval(results, low, high, words):
    comparison = results.comparisons[0]
    estimate = comparison.difference.model_copy(update={"low": low, "high": high})
    assert words in describe(results, comparison.model_copy(update={"difference": estimate}))


def test_our_failures_are_announced(results):
    broken = results.variants[1].overall.model_copy(update={"num_scored": 597, "num_unscored": 3})
    variant = results.variants[1].model_copy(update={"overall": broken})
    changed = results.model_copy(update={"variants": (variant,)})
    for text in (to_text(changed), to_markdown(changed)):
        assert "WARNING: SFT: 3 attempts failed on our side" in text
        assert "600 (-3)" in text
    assert "WARNING" not in to_text(results)


def test_markdown_has_one_row_per_variant(results):
    lines = to_markdown(results).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 * (2 + 4)
    assert [len({row.count("|") for row in part}) for part in (rows[:6], rows[6:])] == [1, 1]
    assert rows[0].startswith(
        "| model | greedy, % read | greedy, % all | greedy add | greedy where | sampled mean@8 | format % |"
    )
    assert "- R-GRPO - SFT, all: +15.2 [+11.0, +19.3], n = 600: better" in lines


def test_csv_has_every_number_of_every_group(results):
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(rows) == 4 * 4
    first = rows[0]
    assert (first["variant"], first["questions"], float(first["accuracy"])) == ("base", "all", 0.31)
    assert float(first["truncation_rate"]) == 0.02


def test_results_survive_the_file(results, tmp_path):
    results.save(tmp_path / "metrics.json")
    assert Results.load(tmp_path / "metrics.json") == results


def test_the_rows_of_a_pipeline_are_measured_on_the_right_weights():
    config = EvaluationConfig(num_questions=600, num_sampled_questions=100, num_ablation_questions=300)
    rows = pipeline_variants(config, base="B", sft="S", rgrpo="R", more_sft="M", no_sft="N")
    assert [(row.name, row.model_path) for row in rows] == [
        ("base_direct", "B"),
        ("base", "B"),
        ("sft", "S"),
        ("more_sft", "M"),
        ("rgrpo", "R"),
        ("no_sft", "N"),
        ("no_crop", "R"),
        ("low_resolution", "R"),
        ("random_region", "R"),
    ]
    assert {row.num_questions for row in rows[:6]} == {600}
    assert {row.num_questions for row in rows[6:]} == {300}
    assert rows[0].style == "direct"
    assert pipeline_comparisons(rows)[:2] == (("sft", "base_direct"), ("sft", "base"))


def test_without_controls_their_comparisons_are_left_out_too():
    rows = pipeline_variants(EvaluationConfig(), base="B", sft="S", rgrpo="R", with_ablations=False)
    assert pipeline_comparisons(rows) == (("sft", "base_direct"), ("sft", "base"), ("rgrpo", "sft"))
