"""The page on sources names everything that a user meets."""

import re
from pathlib import Path

from models.vlir.sources.base import FaultKind
from models.vlir.sources.manifest import FIELDS
from models.vlir.sources.named import PARQUET_SETS

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "sources.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z_0-9]+)`", PAGE))


def test_every_fault_field_and_set_is_on_the_page():
    assert {kind.value for kind in FaultKind} <= NAMED
    assert set(FIELDS) <= NAMED
    assert {*PARQUET_SETS, "gqa", "vsr", "visual_cot"} <= NAMED
