"""The report in a real browser: it opens, filters, replays, compares, prints, and everybody can use it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from models.evaluation.predictions import write_predictions
from models.evaluation.report import write_report
from models.records import write_questions
from tests.evaluation_examples import RIGHT, make_prediction, make_question, make_report_inputs
from tests.integration.browser import Watched, chromium, watch
from tests.report_examples import make_benchmark_page, make_large_inputs

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six questions; R-GRPO answers all but the first, whose box is refused; SFT answers the last two."""
    folder = tmp_path_factory.mktemp("small")
    write_report(folder / "report.html", make_report_inputs(folder))
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 drawn questions with two attempts each: 2,000 trajectories, and some rollouts with rewards."""
    folder = tmp_path_factory.mktemp("large")
    write_report(folder / "report.html", make_large_inputs(folder))
    return folder / "report.html"


@pytest.fixture
def page(browser: Browser, small: str) -> Iterator[Watched]:
    found = watch(browser).goto(small)
    yield found
    assert found.problems == []
    found.page.close()


def test_it_opens_with_the_outcome_and_the_two_models_side_by_side(page: Watched) -> None:
    assert page.text("h1") == "VLM-R3: preset tiny, seed 0"
    assert page.text(".hero h2") == "R-GRPO is better than SFT."
    hero = page.page.locator(".hero").bounding_box()
    assert hero is not None
    assert hero["y"] + hero["height"] < 500
    assert page.text("#count") == "6 of 6 questions, 12 trajectories"
    # The first question that R-GRPO got right and SFT did not.
    assert page.texts("#attempts h4") == ["R-GRPO\nright", "SFT\nwrong"]


@pytest.mark.parametrize(
    ("chosen", "num"),
    [
        ({"f-right": "wrong"}, 1),
        ({"f-right": "right"}, 5),
        ({"f-right": "unscored"}, 0),
        # R-GRPO alone is right on q1 to q3.
        ({"f-right": "differs"}, 3),
        ({"f-crops": "0"}, 1),
        ({"f-crops": "1"}, 5),
        ({"f-first": "sft", "f-right": "right"}, 2),
        ({"f-right": "right", "f-crops": "0"}, 0),
    ],
)
def test_filters_narrow_the_questions(page: Watched, chosen: dict[str, str], num: int) -> None:
    for id, value in chosen.items():
        page.choose(id, value)
    assert page.text("#count").startswith(f"{num} of 6 questions")
    assert page.page.locator(".row").count() == num
    page.page.click("#reset")
    page.settle()
    assert page.text("#count").startswith("6 of 6")


def test_kind_source_and_text_are_filters_too(browser: Browser, large: Path) -> None:
    page = watch(browser).goto(large.as_uri())
    assert not page.page.locator("#f-source").is_visible()  # there is one source, so nothing to choose
    for kind in ("read", "add", "where"):
        page.choose("f-kind", kind)
        assert all(line.partition(" · ")[0].endswith(kind) for line in page.texts(".row .line"))
    page.choose("f-kind", "")
    page.page.fill("#f-find", "PURPLE card?")
    page.settle()
    assert page.page.locator(".row").count() > 0
    assert all("purple" in question for question in page.texts(".row b"))
    page.page.fill("#f-find", "no such words")
    page.settle()
    assert page.text("#question") == "No question fits these filters"
    assert page.problems == []


def test_a_trajectory_is_replayed_step_by_step(page: Watched) -> None:
    page.choose("f-second", "")
    assert page.text("#step") == "2 steps"
    assert page.page.locator(".view svg text").all_text_contents() == ["1"]
    page.page.click("#forth")
    page.settle()
    assert page.text("#step") == "Step 1 of 2"
    first = page.text(".said")
    assert first.startswith('<think>I look {"bbox_2d": [10, 10, 20, 20]}1')
    assert first.endswith("84 px, 9 tokens")
    page.page.click("#forth")
    page.settle()
    assert page.text(".turn.now") == "It says K7.</think><answer>K7</answer>"
    page.page.click("#whole")
    page.settle()
    assert page.page.locator(".turn.now").count() == 0
    assert "I look" in page.text(".said")
    assert "It says" in page.text(".said")


def test_pictures_boxes_and_crops_have_words(page: Watched) -> None:
    page.choose("f-second", "")
    assert page.page.get_attribute(".view svg", "aria-label") == (
        "The picture, seen at 112 by 112 pixels. box 1 from 10, 10 to 20, 20."
    )
    crop = page.page.locator(".crop img")
    assert crop.get_attribute("alt") == "Crop 1: the region 10, 10, 20, 20, shown at 84 by 84 pixels"
    assert crop.evaluate("(image) => image.complete && image.naturalWidth") == 84


def test_a_refused_box_is_named(page: Watched) -> None:
    page.choose("f-second", "")
    page.choose("f-right", "wrong")
    assert "inverted box" in page.text(".numbers")
    assert page.text(".said .note").startswith("[crop refused: x1 must be less than x2")
    assert page.page.get_attribute(".view svg", "aria-label").endswith("refused.")


def test_any_two_models_are_compared_on_the_same_question(page: Watched) -> None:
    page.choose("f-first", "sft")
    page.choose("f-second", "rgrpo")
    assert page.texts("#attempts h4") == ["SFT\nwrong", "R-GRPO\nright"]
    left, right = (box.bounding_box() for box in page.page.locator("#attempts > section").all())
    assert left is not None
    assert right is not None
    assert left["x"] < right["x"]
    assert left["y"] == right["y"]
    page.choose("f-second", "sft")  # with itself: once is enough
    assert page.texts("#attempts h4") == ["SFT\nwrong"]


def test_rollouts_show_their_rewards(browser: Browser, large: Path) -> None:
    page = watch(browser).goto(large.as_uri())
    page.choose("f-set", "step 80")
    assert page.text("#count") == "12 of 12 questions, 24 trajectories"
    assert page.texts("#attempts h4")[0].startswith("sample 1")
    shown = page.text(".numbers")
    assert all(name in shown for name in ("reward", "accuracy", "format", "valid boxes", "advantage"))
    assert page.problems == []


def test_the_keyboard_reaches_and_works_everything(page: Watched) -> None:
    reached = []
    for _ in range(40):
        page.page.keyboard.press("Tab")
        id, outline = page.page.evaluate(
            "() => [document.activeElement.id || document.activeElement.textContent.trim(),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline == "solid", f"no visible focus on {id}"
        reached.append(id)
        if id == "link":
            break
    assert reached[:2] == ["Skip to the content", "Outcome"]
    assert [
        id for id in reached if id in ("f-first", "f-right", "f-find", "list", "next", "forth", "link")
    ] == [
        "f-first",
        "f-right",
        "f-find",
        "list",
        "next",
        "forth",
        "link",
    ]
    page.page.focus("#list")
    first = page.text("#about")
    page.press("ArrowDown")
    assert page.text("#about") != first
    page.press("ArrowUp", "ArrowRight")
    assert (page.text("#about"), page.text("#step")) == (first, "Step 1 of 2")
    page.press("ArrowLeft", "End")
    assert page.page.get_attribute("#list", "aria-activedescendant") == "row-5"
    assert page.page.get_attribute("#row-5", "aria-selected") == "true"
    page.press("Enter")
    assert page.page.evaluate("document.activeElement.id") == "question"
    page.press("Tab", "Space")  # Previous
    assert page.page.get_attribute("#list", "aria-activedescendant") == "row-4"
    assert page.page.evaluate("document.activeElement.id") == "previous"


def test_links_inside_the_page_move_the_focus(page: Watched) -> None:
    page.page.click("nav a[href='#gallery']")
    assert page.page.evaluate("document.activeElement.id") == "gallery"
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.closest('#gallery') !== null")


def test_a_link_leads_back_to_the_same_view(browser: Browser, large: Path) -> None:
    page = watch(browser).goto(large.as_uri())
    page.choose("f-kind", "add")
    page.choose("f-right", "wrong")
    page.page.focus("#list")
    page.press("ArrowDown", "ArrowDown", "ArrowRight")
    wanted = (page.text("#about"), page.text("#step"), page.text("#count"), page.texts("#attempts h4"))
    link = page.page.get_attribute("#link", "href")
    assert page.page.url.endswith(str(link))
    other = watch(browser).goto(f"{large.as_uri()}{link}")
    found = (other.text("#about"), other.text("#step"), other.text("#count"), other.texts("#attempts h4"))
    assert found == wanted
    assert other.page.evaluate("document.getElementById('gallery').getBoundingClientRect().top") < 100
    odd = watch(browser).goto(f"{large.as_uri()}#set=none&a=none&right=none&q=none&step=x")
    assert odd.text("#count").startswith("1000 of 1000")
    assert [*page.problems, *other.problems, *odd.problems] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_passes_an_accessibility_check(browser: Browser, large: Path, scheme: str, width: int) -> None:
    page = watch(browser, color_scheme=scheme, viewport={"width": width, "height": 900}).goto(large.as_uri())
    paper = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.violations() == []
    page.choose("f-right", "wrong")
    page.page.click("#forth")
    page.settle()
    assert page.violations() == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.problems == []
    page.page.close()


# Milliseconds. What a person feels: the frame is there at once, filtering is instant, scrolling does not
# stutter. The limits are several times what an idle machine takes, because tests share theirs.
FIRST_PAINT, FILTERED, FRAME = 2000, 400, 60


def test_two_thousand_trajectories_stay_smooth(browser: Browser, large: Path) -> None:
    page = watch(browser).goto(large.as_uri())
    assert page.text("#count") == "1000 of 1000 questions, 2000 trajectories"
    assert large.stat().st_size < 12_000_000
    painted = page.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    filtered = page.page.evaluate(
        """async () => { const times = [], select = document.getElementById("f-right");
        for (const value of ["wrong", "right", "differs", ""]) { const began = performance.now();
          select.value = value; select.dispatchEvent(new Event("input", { bubbles: true }));
          await new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)));
          times.push(performance.now() - began); } return Math.max(...times); }"""
    )
    frames = page.page.evaluate(
        """async () => { const times = [], list = document.getElementById("list");
        for (let i = 0; i < 120; i++) { const began = performance.now(); list.scrollTop += 480;
          await new Promise(requestAnimationFrame); times.push(performance.now() - began); }
        const num = document.querySelectorAll(".row").length;
        return [times.sort((a, b) => a - b)[60], list.scrollTop, num]; }"""
    )
    print(f"first paint {painted:.0f} ms, filter {filtered:.0f} ms, median frame {frames[0]:.1f} ms")
    assert painted < FIRST_PAINT
    assert filtered < FILTERED
    assert frames[0] < FRAME
    assert frames[1] > 50_000
    assert frames[2] < 60, "rows out of sight exist"
    assert page.problems == []


def test_nothing_a_model_or_a_data_set_says_is_run(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'\u2028&lt;b&gt;"
    inputs = make_report_inputs(tmp_path)
    question = replace(make_question("q0"), text=evil + "{{facts}}", answers=(evil,), kind=evil, source=evil)
    write_questions(tmp_path / "test.parquet", [question])
    attempt = make_prediction(RIGHT[0], f" {evil}</think><answer>{evil}</answer>", question=question)
    write_predictions(tmp_path / "rgrpo.parquet", [attempt])
    evil_inputs = replace(inputs, title=evil, predictions={"rgrpo": tmp_path / "rgrpo.parquet"})
    write_report(tmp_path / "report.html", evil_inputs)
    page = watch(browser).goto((tmp_path / "report.html").as_uri())
    assert page.page.text_content("#question") == evil + "{{facts}}"
    assert page.page.text_content("h1") == evil
    assert evil in (page.page.text_content(".said") or "")
    page.page.fill("#f-find", evil)
    page.settle()
    assert page.page.locator("#main script, #main img[onerror]").count() == 0
    assert page.problems == []


def test_on_paper_there_are_trajectories_and_no_controls(browser: Browser, large: Path) -> None:
    page = watch(browser).goto(large.as_uri())
    page.page.emulate_media(media="print", color_scheme="dark")
    page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.page.locator("#printed article").count() == 8
    assert not any(
        page.page.locator(part).first.is_visible() for part in ("nav", ".filters", "#list", ".buttons")
    )
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.page.locator("#printed article").count() == 0
    assert page.problems == []


def test_nothing_moves_for_those_who_ask_for_that(browser: Browser, small: str) -> None:
    for motion, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        page = watch(browser, reduced_motion=motion).goto(small)
        assert page.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour


def test_a_benchmark_shows_all_pictures_of_a_question(browser: Browser, tmp_path: Path) -> None:
    page = watch(browser).goto(make_benchmark_page(tmp_path).as_uri())
    page.page.fill("#f-find", "older")
    page.settle()
    assert page.texts("#attempts h4") == ["embedded\nright", "embedded (earlier)\nright"]
    page.choose("f-second", "")
    captions = [text.partition(":")[0] for text in page.texts(".view figcaption")]
    assert captions == ["Picture 1", "Picture 2"]
    labels = [view.get_attribute("aria-label") or "" for view in page.page.locator(".view svg").all()]
    assert labels[0].endswith("No box was asked for.")
    assert labels[1].endswith("box 1 from 10, 10 to 40, 40.")
    assert page.violations() == []
    assert page.problems == []


def test_without_scripts_all_but_the_gallery_is_there(browser: Browser, small: str) -> None:
    page = watch(browser, java_script_enabled=False)
    page.page.goto(small)
    assert page.text(".hero h2") == "R-GRPO is better than SFT."
    assert "switched off" in page.text("noscript")
