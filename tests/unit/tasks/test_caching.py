"""A stage is skipped exactly when nothing that shapes its result has changed."""

from pathlib import Path
from typing import Any

import pytest

from models.config import Look, SFTConfig
from models.errors import (
    ChildLostError,
    ConfigError,
    GateError,
    LaunchError,
    ObjectChangedError,
    StoreError,
    TrackingError,
)
from tasks import caching
from tasks.artifacts import ArtifactRef
from tasks.caching import cache_key, cached, code_version, may_pass, sources


def ref(sha256: str, uri: str = "file:///store/a") -> ArtifactRef:
    return ArtifactRef(uri=uri, sha256=sha256, kind="model")


INPUTS: dict[str, Any] = {
    "model": ref("aa"),
    "models": {"base": ref("bb"), "sft": ref("cc")},
    "config": SFTConfig(),
    "look": Look(),
    "seed": 0,
    "label": "sft",
    "parent": "run-1",
}


def key(**changed: Any) -> str:
    return cache_key("sft", ("models.sft.train",), {**INPUTS, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ref("aa", uri="file:///elsewhere")},
        {"models": {"sft": ref("cc"), "base": ref("bb")}},
        {"label": "more_sft"},
        {"parent": "run-2"},
        {"config": SFTConfig(num_epochs=3)},  # 3 is the default
    ],
)
def test_places_names_and_order_do_not_count(changed: dict[str, Any]) -> None:
    assert key(**changed) == key()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ref("ab")},
        {"models": {"base": ref("bb"), "sft": ref("cd")}},
        {"models": {"base": ref("cc"), "sft": ref("bb")}},
        {"config": SFTConfig(num_epochs=4)},
        {"look": Look(max_crops=5)},
        {"seed": 1},
    ],
)
def test_digests_and_configuration_count(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


def test_the_stage_counts() -> None:
    assert cache_key("rgrpo", ("models.sft.train",), INPUTS) != key()


def test_an_input_without_identity_is_refused() -> None:
    with pytest.raises(TypeError, match="no stable identity"):
        key(model=object())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models.stage.train imports models.core at the top and models.late inside a function."""
    files = {
        "models/__init__.py": "",
        "models/stage/__init__.py": "",
        "models/stage/train.py": (
            "import json\nfrom models import core\ndef f():\n    from models.late import thing\n"
        ),
        "models/core.py": "import numpy\nfrom models.deep.inner import value\n",
        "models/late.py": "thing = 1\n",
        "models/deep/__init__.py": "",
        "models/deep/inner.py": "value = 1\n",
        "models/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(caching, "ROOT", tmp_path)
    code_version.cache_clear()
    return tmp_path


def test_the_sources_of_a_stage_are_what_it_imports(project: Path) -> None:
    found = {path.relative_to(project).as_posix() for path in sources("models.stage.train")}
    assert found == {
        "models/__init__.py",
        "models/stage/__init__.py",
        "models/stage/train.py",
        "models/core.py",
        "models/late.py",
        "models/deep/__init__.py",
        "models/deep/inner.py",
    }


@pytest.mark.parametrize(("edited", "counts"), [("models/deep/inner.py", True), ("models/other.py", False)])
def test_an_edit_counts_only_where_it_is_used(project: Path, edited: str, counts: bool) -> None:
    before = code_version("models.stage.train")
    (project / edited).write_text("value = 2\n")
    code_version.cache_clear()
    assert (code_version("models.stage.train") != before) is counts


def test_the_real_stages_have_their_core_among_their_sources() -> None:
    code_version.cache_clear()
    names = {path.name for path in sources("models.sft.train")}
    assert {"train.py", "config.py", "encoding.py", "policy.py", "records.py"} <= names
    assert "vllm_engine.py" not in names


def test_what_is_found_again_lies_in_this_store(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = cached("sft", "models.sft.train")["cache_policy"]
    keys = set()
    for store in ("file:///one", "file:///two"):
        monkeypatch.setenv("VLM_R3_ARTIFACTS", store)
        keys.add(policy.compute_key(None, INPUTS, {}))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (ChildLostError("killed"), True),
        (StoreError("503"), True),
        (TrackingError("refused"), True),
        (ObjectChangedError("another object"), False),
        (LaunchError("the run is failed: loss is not finite"), False),
        (GateError("no"), False),
        (ConfigError("no such preset"), False),
        (ValueError("a bug"), False),
        (None, False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: object, may: bool) -> None:
    assert may_pass(error) is may
