"""An artifact is what it was when it was stored, or an error."""

import hashlib
from pathlib import Path

import pytest

from models.errors import ArtifactError, ConfigError
from tasks.artifacts import ArtifactRef, FileStore, Manifest, local_path, open_store, reference


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights.bin").write_bytes(b"abc")
    (made / "note.txt").write_text("hello")
    return made


def test_what_is_published_can_be_fetched(tmp_path: Path, folder: Path) -> None:
    store = open_store((tmp_path / "store").as_uri(), cache=tmp_path)
    ref = store.publish(folder, stage="sft", kind="model")
    fetched = store.fetch(ref)
    assert fetched == tmp_path / "store" / "sft" / ref.sha256[:16]
    assert (fetched / "model" / "weights.bin").read_bytes() == b"abc"
    # A fresh store, as another process would open it, believes the same reference.
    assert open_store((tmp_path / "store").as_uri(), cache=tmp_path).fetch(ref) == fetched


def test_the_digest_is_that_of_names_sizes_and_contents(folder: Path) -> None:
    manifest = Manifest.of(folder)
    # sha256 of b"abc" is a published test vector (FIPS 180-2).
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.files["model/weights.bin"].sha256 == known
    assert manifest.files["model/weights.bin"].size == 3
    assert manifest.size == 3 + 5
    assert manifest.sha256 == hashlib.sha256(manifest.text().encode()).hexdigest()


def test_equal_content_is_kept_once(tmp_path: Path, folder: Path) -> None:
    store = FileStore(tmp_path / "store")
    first = store.publish(folder, stage="sft", kind="model")
    copy = tmp_path / "copy"
    for path in ("model/weights.bin", "note.txt"):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes((folder / path).read_bytes())
    assert store.publish(copy, stage="sft", kind="model") == first
    assert len(list((tmp_path / "store" / "sft").iterdir())) == 1


@pytest.mark.parametrize("damage", ["changed", "removed", "added"])
def test_damage_is_named(tmp_path: Path, folder: Path, damage: str) -> None:
    ref = FileStore(tmp_path / "store").publish(folder, stage="sft", kind="model")
    victim = local_path(ref.uri) / "model" / "weights.bin"
    if damage == "added":
        victim = victim.with_name("extra.bin")
        victim.write_bytes(b"x")
    else:
        victim.chmod(0o644)
        victim.unlink()
        if damage == "changed":
            victim.write_bytes(b"abd")
    with pytest.raises(ArtifactError, match=victim.name):
        FileStore(tmp_path / "store").fetch(ref)


def test_a_missing_artifact_says_how_to_get_it_back(tmp_path: Path) -> None:
    ref = ArtifactRef(uri=(tmp_path / "gone").as_uri(), sha256="0" * 64, kind="model")
    with pytest.raises(ArtifactError, match="--refresh"):
        FileStore(tmp_path).fetch(ref)


def test_links_and_empty_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="not a plain file"):
        Manifest.of(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArtifactError, match="holds no file"):
        Manifest.of(empty)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_manifest_names_no_file_outside_its_folder(name: str) -> None:
    entry = '{"sha256": "0", "size": 1}'
    assert Manifest.read(f'{{"files": {{"x": {entry}}}}}').size == 1
    with pytest.raises(ArtifactError, match="could leave its folder"):
        Manifest.read(f'{{"files": {{"{name}": {entry}}}}}')
    with pytest.raises(ArtifactError, match="is no manifest"):
        Manifest.read("{}")


def test_a_folder_can_be_referred_to_where_it_lies(tmp_path: Path, folder: Path) -> None:
    ref = reference(folder, kind="model")
    assert FileStore(tmp_path / "store").fetch(ref) == folder
    (folder / "note.txt").write_text("changed")
    with pytest.raises(ArtifactError, match="expected"):
        FileStore(tmp_path / "store").fetch(ref)


@pytest.mark.parametrize("root", ["http://bucket/key", "/plain/path", "relative", "s3://"])
def test_unknown_stores_are_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file://|Write s3://"):
        open_store(root, cache=tmp_path)


@pytest.mark.parametrize("uri", ["s3://bucket/key", "file://host/path", "/path"])
def test_only_local_files_have_a_local_path(uri: str) -> None:
    with pytest.raises(ArtifactError, match="not a local artifact"):
        local_path(uri)


def test_a_local_path_with_spaces_survives(tmp_path: Path) -> None:
    spaced = tmp_path / "a b%c"
    assert local_path(spaced.as_uri()) == spaced
