"""One question about one picture, answered by a model that may look again, told while it happens."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from models.config import Look, Preset, resolve_model_path
from models.engine import DraftingEngine, Engine
from models.errors import ConfigError, EngineError, RecordError
from models.inference import picture_question
from models.narration import Looked, Narrator, Wrote
from models.records import Question
from models.region import View
from models.rollout import MESSAGES, Asked, Episode, Loop
from models.trajectory import Trajectory

if TYPE_CHECKING:
    from models.transformers_engine import TransformersEngine


def read_question(image: Path, text: str) -> Question:
    """The question. Raises ConfigError when the picture cannot be read or the text is empty."""
    if not text.strip():
        raise ConfigError("The question is empty. Ask something about the picture.")
    try:
        return picture_question(str(image), text)
    except RecordError as error:
        raise ConfigError(str(error)) from error


def check_picture(path: Path) -> Path:
    """The file to draw into. Raises ConfigError where none can be written."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--picture {path}: pictures are written as .png, .jpg or .webp. Name it so.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(
            f"{path.absolute().parent} is no folder that can be written to: no picture can be drawn there. "
            "Name another file by --picture."
        )
    return path


def ask(question: Question, engine: Engine, look: Look, tell: Callable[[str], None]) -> Trajectory:
    """The greedy trajectory; ``tell`` gets what is written as it is written, and every look.

    Raises EngineError when the engine fails: that is no answer of the model.
    """
    asked = Asked.of(question, look)
    episode = Episode(asked, 0, look=look, shows_drafts=isinstance(engine, DraftingEngine))
    narrator, numbers = Narrator(episode), count(1)
    loop = Loop(engine)
    loop.start(episode)
    while loop.live:
        list(loop.step())
        for draft in engine.drafts() if isinstance(engine, DraftingEngine) else ():
            tell(narrator.draft(draft.text).text)
        for told in narrator.catch_up():
            tell(told.text if isinstance(told, Wrote) else _look_line(told, asked.views[0], numbers))
    trajectory = episode.trajectory()
    if trajectory.stop.is_our_failure:
        raise EngineError(f"The question was not answered: {trajectory.detail}")
    return trajectory


def _look_line(look: Looked, view: View, numbers: Iterator[int]) -> str:
    """A look in words, numbered as in the picture; a refused one as the model was told it."""
    if look.error is not None:
        return f"{MESSAGES[look.error]}\n"
    if look.box is None or look.crop is None:
        return "\n  [no crop is given]\n"
    corners = [round(value) for value in view.convert(look.box, "original").corners()]
    size = look.crop.size
    return f"\n  [{next(numbers)}: looks at {corners}, {size.width} x {size.height} pixels]\n"


def open_engine(model_path: str, preset: Preset) -> "TransformersEngine":
    """Plain transformers, which is quick to start."""
    from transformers.utils.logging import disable_progress_bar

    from models.policy import load_policy
    from models.transformers_engine import TransformersEngine

    disable_progress_bar()
    policy = load_policy(resolve_model_path(model_path), dtype=preset.engine.dtype)
    return TransformersEngine(policy, preset.engine)
