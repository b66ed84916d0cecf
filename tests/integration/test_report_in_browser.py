"""The report in a real browser: it draws, filters, compares and steps, and nothing fails in its script.

Headless Chromium runs a probe that is added to the end of the page and leaves what it found in the title.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from models.evaluation.report import write_report
from tests.evaluation_examples import make_report_inputs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium"),
]

# ``set`` chooses in a filter as a person would; ``state`` reads what is then shown.
HELPERS = """
window.onerror = (message) => { document.title = JSON.stringify({ error: message }); }; function set(id,
value) { const select = document.getElementById(id); select.value = value; select.dispatchEvent(new
Event("change", { bubbles: true })); } function press(key) { document.activeElement.dispatchEvent(new
KeyboardEvent("keydown", { key, bubbles: true })); } function state() { const all = (selector) =>
[...document.querySelectorAll(selector)]; return { count: document.getElementById("count").textContent,
articles: all("#list article").length, attempts: all("#list .attempts > section h4").map((heading) =>
heading.textContent), focus: all("#list article").indexOf(document.activeElement), }; }
"""


def probe(tmp_path: Path, script: str) -> Any:
    """What the script returns when it has run at the end of the page."""
    page = tmp_path / "report.html"
    write_report(page, make_report_inputs(tmp_path))
    added = f"<script>{HELPERS} document.title = JSON.stringify((() => {{ {script} }})());</script></body>"
    page.write_text(page.read_text().replace("</body>", added))
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    dumped = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    title = re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)
    assert title is not None, dumped[:500]
    return json.loads(unescape(title[1]))


def test_the_page_opens_with_the_two_headline_models_side_by_side(tmp_path):
    found = probe(tmp_path, "return state();")
    assert (found["count"], found["articles"]) == ("6 of 6 questions", 6)
    assert sorted(set(found["attempts"])) == ["R-GRPOright", "R-GRPOwrong", "SFTright", "SFTwrong"]
    assert len(found["attempts"]) == 12


def test_filters_narrow_the_questions(tmp_path):
    # R-GRPO is wrong on the refused q0 only; both models are right on q4 and q5, and q5 alone is an addition.
    found = probe(
        tmp_path,
        """
        const seen = {};
        set("f-right", "false"); seen.wrong = state();
        set("f-right", "differs"); seen.differs = state();
        set("f-right", ""); set("f-kind", "add"); seen.add = state();
        set("f-kind", ""); set("f-crops", "0"); seen.without = state();
        set("f-crops", "1"); seen.one = state();
        set("f-crops", ""); set("f-second", ""); seen.alone = state();
        set("f-first", "sft"); set("f-right", "true"); seen.sft = state();
        return seen;
        """,
    )
    counts = {name: (seen["articles"], len(seen["attempts"])) for name, seen in found.items()}
    assert counts == {
        "wrong": (1, 2),
        "differs": (3, 6),
        "add": (1, 2),
        "without": (1, 2),
        "one": (5, 10),
        "alone": (6, 6),
        "sft": (2, 2),
    }
    assert found["differs"]["count"] == "3 of 6 questions"


def test_j_and_k_step_through_the_questions(tmp_path):
    found = probe(
        tmp_path,
        """
        const seen = [state().focus];
        for (const key of ["j", "j", "k", "k", "x"]) { press(key); seen.push(state().focus); }
        return seen;
        """,
    )
    # Stepping back from the first question stays there.
    assert found == [-1, 0, 1, 0, 0, 0]


def test_a_trajectory_shows_numbered_boxes_and_crops_in_their_place(tmp_path):
    found = probe(
        tmp_path,
        """
        set("f-second", ""); set("f-right", "true");
        const article = document.querySelector("#list article");
        const crop = article.querySelector(".crop img");
        const said = article.querySelector(".said");
        return {
          label: article.querySelector(".view svg").getAttribute("aria-label"),
          numbers: [...article.querySelectorAll(".view svg text")].map((text) => text.textContent),
          alt: crop.alt,
          drawn: crop.complete && crop.naturalWidth,
          text: said.textContent,
          hasWords: [...document.images].every((image) => image.alt),
        };
        """,
    )
    assert found["label"] == (
        "The picture as the model saw it, 112 by 112 pixels. box 1 from 10, 10 to 20, 20."
    )
    assert found["numbers"] == ["1"]
    assert found["alt"] == "Crop 1: the region 10, 10, 20, 20, shown at 84 by 84 pixels"
    assert found["drawn"] == 84
    before, after = re.split("1: 84 . 84 px, 9 tokens", found["text"])
    assert before == '<think>I look {"bbox_2d": [10, 10, 20, 20]}1'
    assert after == "It says K7.</think><answer>K7</answer>"
    assert found["hasWords"]


def test_a_refused_box_is_named(tmp_path):
    found = probe(
        tmp_path,
        """
        set("f-second", ""); set("f-right", "false"); const article = document.querySelector("#list article");
        return [article.querySelector(".meta:last-child").textContent,
        article.querySelector(".note").textContent]; """,
    )
    assert "refused: inverted box" in found[0]
    assert found[1].startswith(" [crop refused: x1 must be less than x2")
