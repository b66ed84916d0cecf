"""The earlier set of a build, by whatever name it goes."""

from pathlib import Path

import pytest

from models.config import Preset
from models.errors import ArtifactError, ConfigError
from models.presets import load_preset
from tasks.artifacts import FileStore
from tasks.settings import Settings
from tasks.vlir_inputs import build_request, check_inputs


def preset_of(earlier: str) -> Preset:
    return load_preset("tiny", [f"vlir.earlier={earlier}"])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_folder_is_taken_as_it_is_and_known_by_its_manifest(made: Path, work_dir: Path) -> None:
    request = build_request(preset_of(str(made)), Settings.read())
    assert request.vlir.earlier == str(made)
    (made / "manifest.json").write_text('{"other": 1}')
    assert build_request(preset_of(str(made)), Settings.read()).sources_digest != request.sources_digest
    assert build_request(load_preset("tiny"), Settings.read()).sources_digest == ""


def test_an_artifact_is_fetched_and_checked(made: Path, work_dir: Path) -> None:
    kept = FileStore(work_dir / "artifacts").publish(made, stage="build_vlir", kind="vlir")
    for name in (f"{kept.uri}#{kept.sha256}", kept.uri):
        request = build_request(preset_of(name), Settings.read())
        assert Path(request.vlir.earlier).as_uri() == kept.uri
    with pytest.raises(ArtifactError):
        build_request(preset_of(f"{kept.uri}#{'0' * 64}"), Settings.read())


def test_a_folder_without_a_set_is_refused_at_once(tmp_path: Path, work_dir: Path) -> None:
    preset = preset_of(str(tmp_path))
    with pytest.raises(ConfigError, match=r"vlir.earlier: .* holds no manifest\.json"):
        check_inputs(preset.vlir, Settings.read())
    with pytest.raises(ConfigError, match=r"vlir.earlier: .* holds no manifest\.json"):
        build_request(preset, Settings.read())
