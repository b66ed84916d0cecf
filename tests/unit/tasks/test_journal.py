"""Entries of a journal in a folder: numbered, whole, and written by exactly one writer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import StoreError
from tasks.journal import new_place, open_journal


def test_entries_are_read_back_and_never_replaced(tmp_path: Path) -> None:
    journal = open_journal((tmp_path / "history").as_uri())
    assert journal.last() == 0
    assert journal.create(1, "one")
    assert not journal.create(1, "another")
    assert journal.create(2, "two")
    assert (journal.last(), journal.read(1), journal.read(2)) == (2, "one", "two")
    with pytest.raises(StoreError, match=r"000003.json cannot be read"):
        journal.read(3)
    assert sorted(path.name for path in (tmp_path / "history").iterdir()) == ["000001.json", "000002.json"]


def test_of_many_writers_one_gets_an_entry(tmp_path: Path) -> None:
    journal = open_journal((tmp_path / "history").as_uri())
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda writer: journal.create(1, f"writer {writer}"), range(64)))
    assert won.count(True) == 1
    assert journal.read(1) == f"writer {won.index(True)}"


def test_an_entry_that_was_cut_short_is_none(tmp_path: Path) -> None:
    (tmp_path / "000001.json.0123456789abcdef.partial").write_text("{")
    journal = open_journal(tmp_path.as_uri())
    assert journal.last() == 0
    assert journal.create(1, "one")


def test_two_registries_in_one_store_keep_apart() -> None:
    assert new_place("s3://bucket/vlm-r3/") != new_place("s3://bucket/vlm-r3")
    assert new_place("s3://bucket/vlm-r3/").startswith("s3://bucket/vlm-r3/history/registry-")
