"""The table of models as plain text, Markdown, CSV and HTML. A published row says so in every format."""

import csv
import io
from collections.abc import Callable, Mapping
from html import escape
from textwrap import wrap
from types import MappingProxyType

from models.evaluation.model_table import TITLES, Cell, ModelTable, TableRow

TEXT_WIDTH = 150
_NONE = "-"
_STYLE = """body{font:14px/1.5 sans-serif;margin:2em}table{border-collapse:collapse}
th,td{padding:.3em .8em;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child,
th:nth-child(2),td:nth-child(2){text-align:left}tr.published{color:#666;font-style:italic}small{color:#666}"""


def to_text(table: ModelTable) -> str:
    """For a terminal, ASCII: a measured row has its 95 % intervals in a line below."""
    head = ["model", "source", *(_title(table, column, _caret) for column in table.columns)]
    lines = [head]
    for row in table.rows:
        lines.append(
            [_name(row, _caret), _source(row), *(_number(row, each, _caret) for each in table.columns)]
        )
        if row.source == "measured":
            lines.append(["", "", *(_interval(row.cells.get(each)) for each in table.columns)])
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    shown = [_aligned(line, widths) for line in lines]
    shown.insert(1, "-" * max(map(len, shown)))
    notes = [f"^{number}  {text}" for number, text in enumerate(table.footnotes, 1)]
    wrapped = [line for note in notes for line in wrap(note, TEXT_WIDTH, subsequent_indent="    ")]
    return "\n".join([table.title + _caret(table.notes), "", *shown, "", *_legend(), *wrapped]) + "\n"


def to_markdown(table: ModelTable) -> str:
    """For README, reports and pull requests: published rows are in italics."""
    titles = ["model", "source", *(_title(table, column, _sup) for column in table.columns)]
    lines = [
        f"{table.title}{_sup(table.notes)}",
        "",
        _pipes(titles),
        _pipes([":--", ":--", *["--:"] * len(table.columns)]),
    ]
    for row in table.rows:
        cells = [_name(row, _sup), _source(row), *(_whole(row, each, _sup) for each in table.columns)]
        lines.append(_pipes([f"*{cell}*" if row.source == "published" else cell for cell in cells]))
    notes = [f"{number}. {text}" for number, text in enumerate(table.footnotes, 1)]
    return "\n".join([*lines, "", *(f"{line}  " for line in _legend()), "", *notes]) + "\n"


def to_html(table: ModelTable) -> str:
    """One page that needs nothing else."""
    head = "".join(
        f"<th>{cell}</th>"
        for cell in ["model", "source", *(_title(table, each, _sup) for each in table.columns)]
    )
    rows = "".join(_html_row(table, row) for row in table.rows)
    notes = "".join(f"<li>{escape(text)}</li>" for text in table.footnotes)
    legend = "<br>".join(map(escape, _legend()))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(table.title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(table.title)}{_sup(table.notes)}</h1>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<p><small>{legend}</small></p><ol>{notes}</ol></html>\n"
    )


def to_csv(table: ModelTable) -> str:
    """One line per number, with everything that is known about it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "source", "asked", "benchmark", "value", "low", "high", "split", "rows", "scored", "notes"]
    )
    for row in table.rows:
        for column, cell in row.cells.items():
            found = cell.results
            facts = ("", "", "") if found is None else (found.data.split, found.num_rows, found.num_scored)
            numbers = sorted({*table.notes, *table.column_notes[column], *row.notes, *cell.notes})
            notes = " | ".join(table.footnotes[number - 1] for number in numbers)
            values = (cell.value, cell.low, cell.high)
            writer.writerow([row.model, row.source, row.asked, column, *values, *facts, notes])
    return buffer.getvalue()


FORMATS: Mapping[str, Callable[[ModelTable], str]] = MappingProxyType(
    {"text": to_text, "markdown": to_markdown, "csv": to_csv, "html": to_html}
)

_Mark = Callable[[tuple[int, ...]], str]


def _caret(notes: tuple[int, ...]) -> str:
    return f" ^{','.join(map(str, notes))}" if notes else ""


def _sup(notes: tuple[int, ...]) -> str:
    return f"<sup>{','.join(map(str, notes))}</sup>" if notes else ""


def _title(table: ModelTable, column: str, mark: _Mark) -> str:
    return TITLES[column] + mark(table.column_notes[column])


def _name(row: TableRow, mark: _Mark) -> str:
    return row.model + mark(row.notes)


def _source(row: TableRow) -> str:
    return f"{row.source}, {row.asked}" if row.asked else row.source


def _number(row: TableRow, column: str, mark: _Mark) -> str:
    cell = row.cells.get(column)
    if cell is None:
        return _NONE
    if cell.value is None:
        return _NONE + mark(cell.notes)
    digits = 0 if column == "mme" and row.source == "published" else 1
    return f"{cell.value:.{digits}f}" + mark(cell.notes)


def _interval(cell: Cell | None) -> str:
    return (
        "" if cell is None or cell.low is None or cell.high is None else f"[{cell.low:.1f}, {cell.high:.1f}]"
    )


def _whole(row: TableRow, column: str, mark: _Mark) -> str:
    interval = _interval(row.cells.get(column))
    return _number(row, column, mark) + (f" {interval}" if interval else "")


def _aligned(cells: list[str], widths: list[int]) -> str:
    """The first two columns to the left, numbers to the right."""
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _html_row(table: ModelTable, row: TableRow) -> str:
    names = [escape(row.model) + _sup(row.notes), escape(_source(row))]
    cells = "".join(
        f"<td>{cell}</td>" for cell in [*names, *(_whole(row, each, _sup) for each in table.columns)]
    )
    return f'<tr class="{row.source}">{cells}</tr>'


def _legend() -> list[str]:
    return [
        "published: as the paper prints it, not measured here. measured: by this project, with its 95 %",
        "interval (Wilson for an accuracy, else bootstrap). Percent; MME in points of 2800.",
    ]
