"""The table of traps names tests and metrics that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| Trap")
]
METRIC = re.compile(r"`((?:sft|rgrpo)/[\w/]+)`")
TESTS = re.compile(r"`(tests/[\w/]+\.py)` \(((?:`test_\w+`(?:, )?)+)\)")


def test_every_row_is_held_by_something() -> None:
    assert len(ROWS) > 30
    for trap, _, held_by in ROWS:
        assert TESTS.search(held_by) or METRIC.search(held_by), trap
        # Nothing is named in another way, which no test here would read.
        assert re.sub(rf"{TESTS.pattern}|{METRIC.pattern}|[, ]", "", held_by) == "", trap


def test_every_named_test_is_there() -> None:
    named = [(file, name) for file, names in TESTS.findall(TEXT) for name in re.findall(r"\w+", names)]
    assert len(named) > 60
    missing = [
        (file, name)
        for file, name in named
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_every_named_metric_is_written_and_explained() -> None:
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "models").rglob("*.py"))
    named = set(METRIC.findall(TEXT))
    assert len(named) > 10
    assert {name for name in named if f"| `{name}` |" not in explained} == set()
    assert {name for name in named if f'"{name}"' not in written} == set()
