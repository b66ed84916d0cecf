"""The command ``ask``."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from models.presets import load_preset
from tasks.model_source import champion_or, find_model
from tasks.settings import prepare

if TYPE_CHECKING:
    from models.inference import Answer


def ask(options: argparse.Namespace) -> int:
    """Ask a model one question, tell how it comes to its answer, and draw what it looked at."""
    from models.annotation import annotate
    from models.inference import answer_of
    from models.region import Size
    from tasks.ask import ask as ask_model
    from tasks.ask import check_picture, open_engine, read_question

    preset = load_preset(options.preset, options.overrides)
    question = read_question(options.image, options.question)
    picture = check_picture(options.picture or Path(f"{options.image.stem}-looked.png"))
    settings = prepare(options.work_dir)
    model = find_model(options.model or champion_or(preset.model.path, settings), settings)
    engine = open_engine(model.path, preset)
    trajectory = ask_model(question, engine, preset.look, _silent if options.json else _tell)
    annotate(trajectory, [question.image()], preset.look.budget).save(picture)
    size = Size(question.width, question.height)
    answer = answer_of(trajectory, [size], preset.look.budget, engine.encoder.decode)
    name = model.source or model.path
    print(_answer_json(answer, name, picture) if options.json else _answer_text(answer, name, picture))
    return 0


def _tell(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    pass


def _answer_text(answer: "Answer", model: str, picture: Path) -> str:
    found = f"none ({answer.stop})" if answer.answer is None else answer.answer
    confidence = "" if answer.confidence is None else f" ({100 * answer.confidence:.0f} % sure)"
    looks = f"{len(answer.boxes)} look{'' if len(answer.boxes) == 1 else 's'}"
    return f"\n\nanswer   {found}{confidence}\nmodel    {model}\npicture  {picture} ({looks})"


def _answer_json(answer: "Answer", model: str, picture: Path) -> str:
    return json.dumps({**asdict(answer), "model": model, "picture": str(picture)}, ensure_ascii=False)
