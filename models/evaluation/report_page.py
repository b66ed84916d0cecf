"""The frame of every report: one HTML file that needs no network and opens from disk.

``page/`` holds the frame, the style and the script; what stands in between is made by
:mod:`models.evaluation.report` (pipelines and evaluations) and :mod:`models.evaluation.benchmark_report`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from models.errors import ScoringError
from models.rundir import write_atomically

_FOLDER = Path(__file__).parent / "page"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_GALLERY = re.compile(r'<script type="application/json" id="gallery-data">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. ``html`` is finished; ``heading`` stands above it, unless it brings its own."""

    id: str
    title: str
    html: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report: sections in order, then the gallery when there is one."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    gallery: Mapping[str, Any] | None = None

    def write(self, path: Path) -> int:
        """Write the page and return its size in bytes."""
        text = self.render()
        write_atomically(path, text)
        return len(text.encode())

    def render(self) -> str:
        """The page as text."""
        sections = list(self.sections)
        data = self.gallery or {"sets": []}
        if any(one["questions"] for one in data["sets"]):
            # Before the last section, which says where everything comes from.
            sections.insert(-1, Section("gallery", "Trajectories", _read("gallery.html"), "Trajectories"))
        parts = {
            "title": escape(self.title),
            "subtitle": escape(self.subtitle),
            "style": _read("style.css"),
            "links": "".join(f'<li><a href="#{one.id}">{escape(one.title)}</a></li>' for one in sections),
            "sections": "\n".join(map(_section, sections)),
            "gallery": _script_json(data),
            "script": _read("script.js"),
        }
        # In one pass, so that nothing a model wrote is taken for a place in the frame.
        return _PLACE.sub(lambda place: parts[place[1]], _read("frame.html"))


def read_gallery(path: Path) -> dict[str, Any]:
    """The gallery's data of a written page. Raises ScoringError when it is no report."""
    found = _GALLERY.search(path.read_text(encoding="utf-8"))
    if found is None:
        raise ScoringError(f"{path} is no report: it holds no gallery. Give a report.html of a run.")
    data: dict[str, Any] = json.loads(found[1])
    return data


def _section(one: Section) -> str:
    if not one.heading:
        return f'<section class="part" id="{one.id}" aria-label="{escape(one.title)}">{one.html}</section>'
    heading = f'<h2 id="h-{one.id}">{escape(one.heading)}</h2>'
    return f'<section class="part" id="{one.id}" aria-labelledby="h-{one.id}">{heading}{one.html}</section>'


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element: ASCII, and without ``<`` nothing can end it."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
