"""One question about one picture, answered by a model that may look again, told while it happens."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.config import Look, Preset, resolve_model_path
from models.engine import DraftingEngine, Engine
from models.errors import ConfigError, EngineError, RecordError
from models.inference import picture_question
from models.records import Question
from models.region import View
from models.rollout import Asked, Episode, Loop
from models.trajectory import CropSpan, Span, Trajectory

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


@dataclass(slots=True)
class Watched:
    """Tells what an episode writes and sees, once, in order: drafts first, then the turns they grow into."""

    tell: Callable[[str], None]
    view: View
    _num_spans: int = 0
    _num_crops: int = 0
    _drafted: str = ""

    def draft(self, text: str) -> None:
        """A piece of the turn that is being written."""
        self._drafted += text
        self.tell(text)

    def spans(self, spans: Sequence[Span]) -> None:
        """What has been written and given so far."""
        for span in spans[self._num_spans :]:
            if isinstance(span, CropSpan):
                self._num_crops += 1
                corners = [round(value) for value in self.view.convert(span.box, "original").corners()]
                size = span.picture.size
                self.tell(
                    f"\n  [{self._num_crops}: looks at {corners}, {size.width} x {size.height} pixels]\n"
                )
            else:
                self.tell(span.text.removeprefix(self._drafted))
                self._drafted = ""
        self._num_spans = len(spans)


def ask(question: Question, engine: Engine, look: Look, tell: Callable[[str], None]) -> Trajectory:
    """The greedy trajectory; ``tell`` gets what is written as it is written, and every look.

    Raises EngineError when the engine fails: that is no answer of the model.
    """
    asked = Asked.of(question, look)
    episode = Episode(asked, 0, look=look, shows_drafts=isinstance(engine, DraftingEngine))
    watched = Watched(tell, asked.views[0])
    loop = Loop(engine)
    loop.start(episode)
    while loop.live:
        list(loop.step())
        for draft in engine.drafts() if isinstance(engine, DraftingEngine) else ():
            watched.draft(draft.text)
        watched.spans(episode.spans)
    trajectory = episode.trajectory()
    if trajectory.stop.is_our_failure:
        raise EngineError(f"The question was not answered: {trajectory.detail}")
    return trajectory


def open_engine(model_path: str, preset: Preset) -> "TransformersEngine":
    """Plain transformers, which is quick to start."""
    from transformers.utils.logging import disable_progress_bar

    from models.policy import load_policy
    from models.transformers_engine import TransformersEngine

    disable_progress_bar()
    policy = load_policy(resolve_model_path(model_path), dtype=preset.engine.dtype)
    return TransformersEngine(policy, preset.engine)
