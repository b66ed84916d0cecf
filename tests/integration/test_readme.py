"""The Python of the README runs as it stands, on a picture of the drawn world."""

import re
from pathlib import Path

import numpy as np
import pytest

from models.tiny import world

README = Path(__file__).resolve().parents[2] / "README.md"

pytestmark = pytest.mark.integration


def test_the_readme_example_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded base answers directly: it does not know the protocol, so it ends without an answer tag."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    rng = np.random.default_rng(0)
    scenes = (world.sample_scene(rng, "validation") for _ in range(100))
    scene = next(scene for scene in scenes if any(card.color == "red" for card in scene.cards))
    world.draw(scene).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert names["trajectory"].num_sampled_tokens > 0  # type: ignore[attr-defined]
    assert str(names["trajectory"].stop) in printed  # type: ignore[attr-defined]
    assert len(example.strip().splitlines()) <= 12
