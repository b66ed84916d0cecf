"""Pieces of a report as HTML. All text that comes from outside is escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal

from models.evaluation.report_inputs import Fact, Figure
from models.evaluation.results import Estimate

# Columns of words; all others hold numbers and are aligned to the right.
_TEXT = frozenset(
    {
        "questions",
        "verdict",
        "detail",
        "share",
        "remark",
        "metric",
        "outcome",
        "expected",
        "observed",
        "examples",
    }
)


def table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A table that scrolls by itself when it is too wide. A row is its name and then finished cells."""
    top = "".join(
        f'<th scope="col" class="text">{escape(name)}</th>'
        if name in _TEXT
        else f'<th scope="col">{escape(name)}</th>'
        for name in head
    )
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, *cells in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cell(text: str, kind: Literal["", "text", "text good", "text bad", "text unclear"] = "") -> str:
    """A finished cell of a table."""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bar_cell(share: float) -> str:
    """A cell with a bar of this share (0 to 1) of its width."""
    return f'<td class="bar"><span style="width:{100 * share:.1f}%"></span></td>'


def facts(found: Sequence[Fact]) -> str:
    """Names and values; nothing when there are none."""
    items = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}"
        + (f' <span class="small">{escape(fact.remark)}</span>' if fact.remark else "")
        + "</dd></div>"
        for fact in found
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def tile(label: str, found: Estimate) -> str:
    """A share with its 95 % interval, as numbers and on a bar from 0 to 1."""
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return (
        f'<div class="tile"><span>{escape(label)}</span><strong>{100 * found.value:.1f} %</strong>'
        f'<div class="range" aria-hidden="true"><span style="left:{100 * low:.1f}%;'
        f'width:{100 * (high - low):.1f}%"></span></div>'
        f'<span class="small">{100 * found.low:.1f} to {100 * found.high:.1f}</span></div>'
    )


def figures(found: Sequence[Figure]) -> str:
    """Drawn figures, as pictures: nothing in them can run or load anything."""
    return "".join(
        f'<figure class="chart wide"><figcaption>{escape(one.title)}</figcaption><img alt="'
        f'{escape(one.words or one.title, quote=True)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(one.svg).decode()}"></figure>'
        for one in found
    )


def bullet_list(lines: Iterable[str], kind: str = "verdicts") -> str:
    """Lines as a list."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def warning(text: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="warning">{escape(text)}</p>'


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Counts as ``read 504, add 48``."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def duration(seconds: float) -> str:
    """Seconds for people: ``6 min 21 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
