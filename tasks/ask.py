"""One question about one picture, answered by a model that may look again."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from models.config import Preset, resolve_model_path
from models.errors import ConfigError
from models.records import Question
from models.rollout import rollout
from models.trajectory import Trajectory


def read_question(image: Path, text: str) -> Question:
    """The question. Raises ConfigError when the picture cannot be read."""
    try:
        with Image.open(image) as opened:
            return Question.of_image(opened, text)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{image} cannot be read as a picture: {error}") from error


def ask(question: Question, *, model_path: str, preset: Preset) -> Trajectory:
    """The greedy trajectory of a model folder, on the plain transformers engine: quick to start."""
    from models.policy import load_policy
    from models.transformers_engine import TransformersEngine

    policy = load_policy(resolve_model_path(model_path), dtype=preset.engine.dtype)
    engine = TransformersEngine(policy, preset.engine)
    (trajectory,) = rollout(engine, [question], look=preset.look)
    return trajectory
