"""The paper-to-code table names files, functions and tests that are there, and every equation."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "paper_to_code.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| Paper")
]


def paths_in(cell: str) -> list[Path]:
    """The files and folders that a cell names; a bare name lies beside the path before it."""
    found: list[Path] = []
    for name in re.findall(r"`([\w./-]+(?:\.\w+|/))`", cell):
        beside = found[-1].parent if found else ROOT
        found.append(ROOT / name if (ROOT / name).exists() else beside / name)
    return found


def test_every_file_and_test_is_there() -> None:
    named = [path for _, code, tests in ROWS for path in (*paths_in(code), *paths_in(tests))]
    assert len(named) > 50
    assert [str(path.relative_to(ROOT)) for path in named if not path.exists()] == []


def test_every_row_has_code_and_tests() -> None:
    for section, code, tests in ROWS:
        assert paths_in(code), section
        assert paths_in(tests), section
        assert all(path.is_relative_to(ROOT / "tests") for path in paths_in(tests)), section


def test_every_function_in_brackets_is_in_its_file() -> None:
    named = re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", TABLE.read_text(encoding="utf-8"))
    assert named
    for file, functions in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", functions):
            assert re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE), (file, name)


def test_every_equation_and_listing_of_the_paper_is_named() -> None:
    sections = " ".join(section for section, _, _ in ROWS)
    wanted = {*(f"Eq. {n}" for n in (1, 2, 3, 4)), "Table 1", "Table 2", "Figure 3", "Figure 4", "Figure 5"}
    assert {name for name in wanted if name not in sections} == set()
    assert {name for name in ("Listings 1 and 2", "Listings 3 and 4") if name not in sections} == set()
