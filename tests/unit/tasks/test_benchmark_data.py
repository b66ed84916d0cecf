"""Data that were measured before are measured again, or a clear error says which digest was meant."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.benchmarks.sets import LocalSet, read_set
from models.errors import ConfigError
from tasks.benchmark_data import Pinning, check_digest
from tests.benchmark_examples import file_name, schema_of, small, write

PUBLISHED, SPLIT, ROWS = small("mme")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "benchmarks.lock.json"


def read(tmp_path: Path, **changed: str) -> LocalSet:
    folder = tmp_path / ("changed" if changed else "first")
    write(folder / file_name(SPLIT), [{**ROWS[0], **changed}, ROWS[1]], schema_of(PUBLISHED))
    return read_set(PUBLISHED, folder, SPLIT)


def test_the_first_use_is_recorded_and_every_later_one_must_equal_it(tmp_path: Path, lock: Path) -> None:
    first, changed = read(tmp_path), read(tmp_path, question="Is it?")
    check_digest(first, "s3://a/b", Pinning(lock))
    pins = json.loads(lock.read_text())
    assert set(pins) == {"mme test"}
    assert pins["mme test"] | {"date": ""} == {
        "digest": first.digest,
        "num_rows": 2,
        "source": "s3://a/b",
        "date": "",
    }
    before = lock.read_text()
    check_digest(first, "/elsewhere", Pinning(lock))
    assert lock.read_text() == before
    with pytest.raises(ConfigError) as caught:
        check_digest(changed, "/new", Pinning(lock))
    for part in (first.digest, changed.digest, "from s3://a/b", f"--accept-data-digest {changed.digest}"):
        assert part in str(caught.value)
    assert lock.read_text() == before


def test_another_digest_can_be_accepted_by_name(tmp_path: Path, lock: Path) -> None:
    first, changed = read(tmp_path), read(tmp_path, question="Is it?")
    check_digest(first, "/old", Pinning(lock))
    with pytest.raises(ConfigError, match="has digest"):
        check_digest(changed, "/new", Pinning(lock, accepted=first.digest))
    check_digest(changed, "/new", Pinning(lock, accepted=changed.digest))
    assert json.loads(lock.read_text())["mme test"]["digest"] == changed.digest
    check_digest(changed, "/new", Pinning(lock))


def test_a_digest_can_be_demanded(tmp_path: Path, lock: Path) -> None:
    first = read(tmp_path)
    check_digest(first, "/old", Pinning(lock, demanded=first.digest))
    with pytest.raises(ConfigError, match=f"has digest {first.digest}; --data-digest demands {'0' * 64}"):
        check_digest(first, "/old", Pinning(lock, demanded="0" * 64))
    with pytest.raises(ConfigError, match="--data-digest 'abc' is no sha256"):
        Pinning(lock, demanded="abc")


def test_a_digest_that_ships_wins(tmp_path: Path, lock: Path) -> None:
    first, changed = read(tmp_path), read(tmp_path, question="Is it?")
    shipped = replace(PUBLISHED, digests={SPLIT: first.digest})
    check_digest(replace(first, published=shipped), "/old", Pinning(lock))
    assert not lock.exists()
    with pytest.raises(ConfigError, match=f"the published set has {first.digest}"):
        check_digest(replace(changed, published=shipped), "/new", Pinning(lock, accepted=changed.digest))


def test_a_partial_set_pins_nothing(tmp_path: Path, lock: Path) -> None:
    write(tmp_path / file_name(SPLIT), ROWS[:1], schema_of(PUBLISHED))
    partial = read_set(PUBLISHED, tmp_path, SPLIT, allow_partial=True)
    check_digest(partial, "/part", Pinning(lock))
    assert not lock.exists()
    with pytest.raises(ConfigError, match="--data-digest demands"):
        check_digest(partial, "/part", Pinning(lock, demanded="0" * 64))


def test_a_broken_file_of_pins_is_no_reason_to_forget_them(tmp_path: Path, lock: Path) -> None:
    lock.parent.mkdir()
    lock.write_text('{"mme test": {"digest": 1}}')
    with pytest.raises(ConfigError, match="is no file of pinned digests"):
        check_digest(read(tmp_path), "/old", Pinning(lock))
    assert lock.read_text() == '{"mme test": {"digest": 1}}'
