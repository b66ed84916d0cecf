"""The report: everything in it, nothing from outside, nothing unescaped."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models.config import ReportConfig
from models.errors import ScoringError
from models.evaluation.gallery import Attempt, Column, choose
from models.evaluation.predictions import write_predictions
from models.evaluation.report import page_of, write_report
from models.evaluation.report_inputs import (
    RGRPO_PANELS,
    SFT_PANELS,
    Check,
    Fact,
    Figure,
    Panel,
    ReportInputs,
    StageTime,
)
from models.evaluation.report_page import read_gallery
from models.records import write_questions
from tests.evaluation_examples import make_prediction, make_question, make_report_inputs
from tests.report_examples import make_large_inputs


@pytest.fixture
def inputs(tmp_path) -> ReportInputs:
    """Six questions; R-GRPO answers five, SFT the last two; one trajectory has a refused box."""
    return make_report_inputs(tmp_path)


def render(inputs: ReportInputs) -> str:
    """The page as text."""
    return page_of(inputs).render()


class Page(HTMLParser):
    """The tags, the text and the gallery of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: str | None = None
        self.gallery: dict[str, Any] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") if tag == "script" else tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "gallery-data":
            self.gallery = json.loads(data)
        elif self._inside != "style":
            self.text += data


def test_the_outcome_comes_first_with_interval_and_promotion(inputs):
    text = Page(render(inputs)).text
    assert "R-GRPO is better than SFT." in text
    assert "+15.2 points of accuracy, 95 % interval +11.0 to +19.3, on the same 600 questions." in text
    assert "Version 2: not promoted" in text
    assert "lower end -0.4 points, not above 0" in text
    places = [
        text.index(words) for words in ("R-GRPO is better", "not promoted", "Held-out questions", "SFT: loss")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.19, -0.11, "R-GRPO is worse than SFT."),
        (-0.01, 0.3, "No clear difference between R-GRPO and SFT."),
    ],
)
def test_the_outcome_follows_the_interval(inputs, low, high, words):
    first, *others = inputs.results.comparisons
    changed = first.model_copy(
        update={"difference": first.difference.model_copy(update={"low": low, "high": high})}
    )
    results = inputs.results.model_copy(update={"comparisons": (changed, *others)})
    assert words in render(replace(inputs, results=results))


def test_every_section_is_there(inputs):
    page = Page(render(inputs))
    for words in (
        "no crop injected",
        "13.2x9.4",
        "R-GRPO: reward",
        "SFT: loss per token",
        "no leaked answer",
        "3: a, b, c",
        "Validation of the rationales: 1 failed",
        "accepted rationales",
        "80.5 %",
        "6 min 21 s of work",
        "from the cache",
        "c218138",
    ):
        assert words in page.text, words
    landmarks = {tag for tag, _ in page.tags}
    assert {"header", "nav", "main", "footer"} <= landmarks
    (language,) = [attributes["lang"] for tag, attributes in page.tags if tag == "html"]
    assert language == "en"


def test_the_last_line_of_a_step_counts_in_a_curve(inputs):
    labels = [a.get("aria-label") or "" for tag, a in Page(render(inputs)).tags if tag == "svg"]
    (reward,) = [label for label in labels if label.startswith("R-GRPO: reward")]
    assert reward == "R-GRPO: reward. total: from 1.25 to 1.25, lowest 1.25, highest 1.25"


def test_a_panel_can_show_all_metrics_below_a_name(inputs):
    lines = [{"step": step, "rgrpo/correct/read": 0.5, "rgrpo/correct/add": 0.25} for step in (1, 2)]
    panel = Panel("share right", (("rgrpo/correct/", ""),))
    page = Page(render(replace(inputs, rgrpo_metrics=lines, rgrpo_panels=(panel,))))
    (label,) = [
        a["aria-label"] for tag, a in page.tags if (a.get("aria-label") or "").startswith("share right")
    ]
    assert label == (
        "share right. add: from 0.25 to 0.25, lowest 0.25, highest 0.25; "
        "read: from 0.5 to 0.5, lowest 0.5, highest 0.5"
    )


def test_the_metrics_of_the_panels_are_those_that_the_stages_log():
    """A renamed metric would leave an empty chart without a word."""
    root = Path(__file__).parents[3] / "models"
    logged = "".join(path.read_text() for stage in ("sft", "rgrpo") for path in (root / stage).glob("*.py"))
    for panel in (*SFT_PANELS, *RGRPO_PANELS):
        for name, _ in panel.series:
            assert f'"{name}"' in logged or f'"{name}{{' in logged, name


def test_nothing_is_loaded_from_outside(inputs):
    page = render(inputs)
    # The name of SVG looks like an address and is none; pictures may hold any characters.
    bare = re.sub(r'data:image[^"]*', "", page).replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:)?//[a-z]", bare, re.IGNORECASE) == []
    assert "@import" not in page
    assert "url(" not in page
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
    policy = next(
        a["content"] for _, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_pictures_and_charts_have_words(inputs):
    for tag, attributes in Page(render(inputs)).tags:
        if tag == "svg":
            assert attributes.get("role") == "img"
            assert attributes.get("aria-label")
        assert tag != "img" or attributes.get("alt")


def test_the_gallery_holds_trajectories_with_boxes_crops_and_outcomes(inputs):
    gallery = Page(render(inputs)).gallery
    (held_out,) = gallery["sets"]
    assert [column["name"] for column in held_out["columns"]] == ["sft", "rgrpo"]
    assert held_out["compare"] == ["rgrpo", "sft"]
    questions = {question["id"]: question for question in held_out["questions"]}
    assert len(questions) == 6
    question = questions["q4"]
    (picture,) = question["pictures"]
    assert picture["gold"] == [[10.0, 10.0, 20.0, 20.0]]
    assert picture["size"] == [112, 112]
    assert gallery["pictures"][picture["key"]].startswith("data:image/webp;base64,")
    attempt = question["attempts"]["rgrpo"]
    assert (attempt["right"], attempt["answer"], attempt["stop"], attempt["crops"]) == (
        True,
        "K7",
        "answered",
        1,
    )
    assert attempt["iou"] == 1.0
    first, crop, last = attempt["parts"]
    assert first["text"].endswith("[10, 10, 20, 20]}")
    # 40 original pixels, zoomed to 80, smart-resized to 84: nine tokens.
    assert (crop["size"], crop["tokens"]) == ([84, 84], 9)
    assert crop["crop"] in gallery["pictures"]
    assert last["text"].endswith("<answer>K7</answer>")
    refused = questions["q0"]["attempts"]["rgrpo"]
    assert refused["boxes"] == [{"at": [20.0, 20.0, 10.0, 10.0], "image": 1, "error": "inverted_box"}]
    assert "note" in refused["parts"][1]


def test_each_picture_is_embedded_once(inputs):
    gallery = Page(render(inputs)).gallery
    # All questions show the same picture; the crops are the right and the wrong region.
    assert len(gallery["pictures"]) == 3


@pytest.mark.parametrize(("num_trajectories", "num_questions"), [(12, 6), (5, 2), (1, 1)])
def test_the_gallery_has_no_more_trajectories_than_asked_for(inputs, num_trajectories, num_questions):
    config = ReportConfig(num_trajectories=num_trajectories)
    (held_out,) = Page(render(replace(inputs, config=config))).gallery["sets"]
    assert len(held_out["questions"]) == num_questions
    assert held_out["num_asked"] == 6


def test_the_gallery_stops_where_its_room_ends(inputs):
    (held_out,) = Page(render(replace(inputs, config=ReportConfig(max_megabytes=0.0001)))).gallery["sets"]
    assert len(held_out["questions"]) == 1


def test_rollouts_come_with_reward_parts_and_advantage(tmp_path):
    inputs = make_large_inputs(tmp_path, num_pictures=14, num_copies=1)
    gallery = Page(render(inputs)).gallery
    assert [one["name"] for one in gallery["sets"]] == ["held-out", "step 1", "step 80"]
    (attempts, *_) = [question["attempts"] for question in gallery["sets"][1]["questions"]]
    assert sorted(attempts) == ["0", "1", "2", "3"]
    for attempt in attempts.values():
        parts = attempt["reward"]
        total = parts.pop("total")
        assert total == pytest.approx(sum(parts.values()), abs=1e-3)
        assert attempt["advantage"] == pytest.approx(total - 1.0, abs=1e-3)
        assert attempt["right"] == (parts["accuracy"] > 0)


def test_a_written_page_gives_its_gallery_back(inputs, tmp_path):
    write_report(tmp_path / "report.html", inputs)
    assert read_gallery(tmp_path / "report.html") == Page(render(inputs)).gallery
    (tmp_path / "other.html").write_text("<html></html>")
    with pytest.raises(ScoringError, match="is no report"):
        read_gallery(tmp_path / "other.html")


def test_cost_is_process_hours_and_a_price_where_there_is_one(inputs):
    stages = (StageTime("sft", 1800.0, num_processes=2), StageTime("rgrpo", 900.0))
    text = Page(render(replace(inputs, stages=stages))).text
    # 2 x 0.5 h and 1 x 0.25 h.
    assert "45 min 00 s of work, some of it side by side; 1.25 process hours" in text
    assert "cost" not in text.partition("45 min")[2].partition("Where this comes from")[0]
    priced = replace(inputs, stages=stages, config=ReportConfig(price_per_process_hour=4))
    assert "1.25 process hours, cost 5.00 at 4 per process hour" in Page(render(priced)).text


def test_the_time_inside_the_steps_is_summed_up_once_per_step(inputs):
    lines = [{"step": 1, "time/rollout_seconds": seconds} for seconds in (9.0, 20.0)]
    lines += [{"step": 2, "time/rollout_seconds": 22.5}]
    text = Page(render(replace(inputs, rgrpo_metrics=lines))).text
    assert "Inside the steps of R-GRPO" in text
    assert "rollout42.5 s" in text


def test_the_verdict_of_the_gate_is_a_table_with_bounds_and_examples(inputs):
    checks = (
        Check("num_records", True, bounds="at least 100", observed="120"),
        Check("id_is_unique", False, "found <b>", "unique", "", 2, ("q1", "q1")),
        Check("size_drift", True, "skipped: nothing to compare", "at most 0.2", skipped=True),
    )
    text = Page(render(replace(inputs, validation=checks))).text
    assert "Validation of the rationales: 1 failed, 1 skipped" in text
    assert "num_recordsat least 100120held0" in text
    assert "id_is_uniqueuniquefailed2q1, q1found <b>" in text
    assert "size_driftat most 0.2skipped0skipped: nothing to compare" in text


def test_figure_3_is_drawn_from_the_statistics_of_the_data(inputs):
    statistics = {
        "crops_per_image": {"0": 1, "12": 5},
        "crops_per_record": {"0": 1, "10": 2, "2": 3},
        "crops_per_size": {"large": 0, "very_small": 3},
        "records_per_source": {"a": 1, "b": 2},
    }
    labels = [a.get("aria-label") or "" for _, a in Page(render(replace(inputs, statistics=statistics))).tags]
    assert "Crops per picture. 0: 1; 12: 5" in labels
    assert "Crops per rationale. 0: 1; 2: 3; 10: 2" in labels
    assert "Crops by share of the picture. very small, below 5 %: 3; large, 50 % or more: 0" in labels
    assert "Rationales by source. b: 2; a: 1" in labels


def test_drawn_figures_are_pictures_that_cannot_run(inputs):
    figure = Figure("Figure 5", b"<svg><script>alert(1)</script></svg>", 'a "bar"')
    page = Page(render(replace(inputs, figures=(figure,))))
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert (picture["src"] or "").startswith("data:image/svg+xml;base64,")
    assert picture["alt"] == 'a "bar"'


def test_what_a_run_has_not_is_left_out(inputs):
    bare = replace(
        inputs, promotion=None, data=(), validation=(), stages=(), sft_metrics=(), rgrpo_metrics=()
    )
    page = Page(render(bare))
    ids = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert ids == ["outcome", "results", "gallery", "origin"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["#main", "#outcome", "#results", "#gallery", "#origin", "#gallery"]
    assert "promoted" not in page.text


def test_text_from_a_model_or_a_question_cannot_break_the_page(inputs, tmp_path):
    evil = "</script><script>alert(1)</script>{{facts}}"
    question = replace(make_question("q0"), text=evil)
    write_questions(tmp_path / "test.parquet", [question])
    write_predictions(
        tmp_path / "rgrpo.parquet",
        [make_prediction(evil[:-1], "}", "<answer>K7</answer>", question=question)],
    )
    page = render(
        replace(
            inputs,
            title="<b>title</b>",
            facts=(Fact("<i>", evil),),
            predictions={"rgrpo": tmp_path / "rgrpo.parquet"},
        )
    )
    assert "<script>alert" not in page
    assert "<b>title" not in page
    parsed = Page(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert parsed.gallery["sets"][0]["questions"][0]["text"] == evil


def test_a_headline_that_was_not_compared_is_refused(inputs):
    with pytest.raises(ScoringError, match=r"\('rgrpo', 'base'\) were not compared"):
        render(replace(inputs, headline=("rgrpo", "base")))


def test_the_page_is_written_and_small(inputs, tmp_path):
    size = write_report(tmp_path / "out" / "report.html", inputs)
    assert size == (tmp_path / "out" / "report.html").stat().st_size
    assert size < 200_000


def test_our_failures_are_shown_as_such(inputs, tmp_path):
    broken = make_prediction(question=make_question("q0"))
    write_predictions(tmp_path / "rgrpo.parquet", [broken])
    gallery = Page(render(replace(inputs, predictions={"rgrpo": tmp_path / "rgrpo.parquet"}))).gallery
    attempt = gallery["sets"][0]["questions"][0]["attempts"]["rgrpo"]
    assert (attempt["right"], attempt["stop"], attempt["detail"]) == (None, "engine_error", "lost the device")


def test_kinds_and_outcomes_take_turns_in_the_gallery():
    def column(name: str, right: str) -> Column:
        attempts = {
            f"q{i}": Attempt(None, str(i) in right, None, kind="read" if i < 6 else "add") for i in range(8)
        }
        return Column(name, name, attempts)

    # Both right: q0, q1, q2, q6. Gained: q3. Both wrong: q4, q5, q7.
    chosen = choose([column("sft", "0126"), column("rgrpo", "01236")])
    # First one question of each (kind, outcome), large groups first; then the second of each.
    assert chosen == ["q0", "q4", "q3", "q6", "q7", "q1", "q5", "q2"]
