"""A user's manifest with pictures of the drawn world: real files, and answers the tiny model can find."""

import json
from pathlib import Path

from models.config import QuestionMix
from models.vlir.drawn import draw_questions


def write_drawn_manifest(
    folder: Path, num_questions: int, *, kinds: dict[str, float], seed: int = 11, with_boxes: bool = False
) -> Path:
    """``manifest.jsonl`` and its pictures, one question each."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    mix = QuestionMix(num_questions=num_questions, kinds=kinds)
    lines = []
    for number, drawn in enumerate(draw_questions("train", mix, seed=seed)):
        question = drawn.question
        name = f"pictures/{number:05d}.png"
        (folder / name).write_bytes(question.image_bytes)
        row = {
            "id": str(number),
            "image": name,
            "question": question.text,
            "answer": question.answers[0],
            "kind": question.kind,
        }
        boxes = [list(box.corners()) for box in question.gold_boxes]
        lines.append(json.dumps({**row, "boxes": boxes} if with_boxes and boxes else row))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
