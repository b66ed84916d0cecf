import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.feature_store import FeatureStore

ROOT = Path(__file__).parents[2]
PLENTY = 1 << 20


def features(seed, dtype=torch.float32):
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)  # 40 bytes in fp32


def test_memory_drops_the_least_recently_used():
    store = FeatureStore(max_bytes=100)  # two of 40 bytes fit
    store.put({"a": features(1), "b": features(2)})
    assert store.get("a") is not None  # "b" is now the older one
    store.put({"c": features(3)})  # 120: down to 75 bytes, so one stays
    assert [name for name in "abc" if store.get(name) is not None] == ["c"]


def test_what_is_there_already_is_not_counted_twice():
    store = FeatureStore(max_bytes=100)
    for _ in range(5):
        store.put({"a": features(1), "b": features(2)})
    assert store.get("a") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_to_disk_and_back_every_bit_is_the_same(tmp_path, dtype):
    store = FeatureStore(max_bytes=50, folder=tmp_path / "features", max_file_bytes=PLENTY)
    for seed in range(6):
        store.put({str(seed): features(seed, dtype)})
    assert list((tmp_path / "features").glob("*.safetensors"))
    for seed in range(6):
        found = store.get(str(seed))
        assert found.dtype == dtype
        assert torch.equal(found, features(seed, dtype))


def written(folder, *seeds):
    store = FeatureStore(max_bytes=PLENTY, folder=folder, max_file_bytes=PLENTY)
    store.put({str(seed): features(seed) for seed in seeds})
    store.flush()
    (path,) = store._known
    return path


def test_a_store_sees_what_another_writes_after_it_was_opened(tmp_path):
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    assert store.get("1") is None
    written(tmp_path, 1)
    assert torch.equal(store.get("1"), features(1))


def test_nothing_is_written_twice(tmp_path):
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    store.put({"1": features(1)})
    store.flush()
    store.flush()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_another_store_wrote_meanwhile_is_not_written_again(tmp_path):
    stores = [FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY) for _ in range(2)]
    for store in stores:
        store.put({"1": features(1)})
    for store in stores:
        store.flush()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_does_not_hide_a_good_one(tmp_path):
    """In either order of their names."""
    for number, name in enumerate(("0", "f")):
        folder = tmp_path / str(number)
        path = written(folder, 1)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        (folder / f"{name}.safetensors").write_bytes(data)
        store = FeatureStore(max_bytes=PLENTY, folder=folder, max_file_bytes=PLENTY)
        assert torch.equal(store.get("1"), features(1))
        store.forget()
        assert torch.equal(store.get("1"), features(1))
        store.flush()
        assert len(list(folder.iterdir())) == 2


def test_a_file_of_somebody_else_counts_as_absent(tmp_path):
    save_file({"1": features(1)}, tmp_path / "theirs.safetensors")
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    assert store.get("1") is None


def test_a_file_that_was_cut_off_counts_as_absent(tmp_path):
    path = written(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes()[:-10])
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    assert store.get("1") is None
    store.put({"1": features(1)})
    store.flush()  # computed again, it is kept again
    again = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    assert torch.equal(again.get("1"), features(1))


def test_a_flipped_bit_is_noticed_and_its_neighbour_is_not_lost(tmp_path):
    path = written(tmp_path, 1, 2)
    data = bytearray(path.read_bytes())
    place = data.index(features(1).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    assert store.get("1") is None
    assert torch.equal(store.get("2"), features(2))


def test_features_that_were_read_do_not_change_with_their_file(tmp_path):
    path = written(tmp_path, 1)
    found = FeatureStore(max_bytes=PLENTY, folder=tmp_path).get("1")
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found, features(1))


def test_a_folder_that_is_full_gets_no_more_and_is_still_read(tmp_path):
    written(tmp_path, 1)
    store = FeatureStore(max_bytes=50, folder=tmp_path, max_file_bytes=100)
    store.put({"2": features(2), "3": features(3)})
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(store.get("1"), features(1))


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = FeatureStore(max_bytes=50, folder=tmp_path / "file" / "below", max_file_bytes=PLENTY)
    store.put({"1": features(1), "2": features(2)})
    store.put({"3": features(3)})
    assert torch.equal(store.get("3"), features(3))


def test_what_a_killed_process_was_writing_goes_and_what_is_being_written_stays(tmp_path):
    abandoned, growing = tmp_path / "old.partial", tmp_path / "new.partial"
    for partial in (abandoned, growing):
        partial.write_bytes(b"half")
    two_hours_ago = time.time() - 7200
    os.utime(abandoned, (two_hours_ago, two_hours_ago))
    FeatureStore(max_bytes=50, folder=tmp_path, max_file_bytes=PLENTY)
    assert list(tmp_path.iterdir()) == [growing]


WRITER = """
import sys, torch
from pathlib import Path
from models.feature_store import FeatureStore
store = FeatureStore(max_bytes=50, folder=Path(sys.argv[1]), max_file_bytes=1 << 20)
for seed in range(40):
    values = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
    found = store.get(str(seed))
    assert found is None or torch.equal(found, values)
    store.put({str(seed): values})
store.flush()
"""


def test_two_processes_write_into_one_folder_at_once(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT) for _ in range(2)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    store = FeatureStore(max_bytes=PLENTY, folder=tmp_path, max_file_bytes=PLENTY)
    for seed in range(40):
        assert torch.equal(store.get(str(seed)), features(seed))
    assert not list(tmp_path.glob("*.partial"))
