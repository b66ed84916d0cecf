"""Records of several mixes of lengths, for :mod:`tests.benchmarks.training_speed`."""

from dataclasses import replace

from models.protocol import render_box
from models.records import RationaleStep, VLIRRecord

MIXES = ("real", "short", "long", "short and long")


def mixed(records: list[VLIRRecord], mix: str) -> list[VLIRRecord]:
    """Records of a mix of lengths. No question and no crop is there twice: a picture that our side remembers
    from another record, or a prompt that two of a batch have in common, would be work that TRL alone does.
    """
    if mix == "real":
        return records
    looks = [record for record in records if record.boxes]
    num_long = {"short": 0, "long": len(looks), "short and long": len(looks) // 2}[mix]
    return [*map(_long, looks[:num_long]), *map(_short, looks[num_long:])]


def _short(record: VLIRRecord) -> VLIRRecord:
    """The record without its looks."""
    last = record.steps[-1]
    return replace(record, steps=(replace(last, text=f"<think>{last.text}"),))


def _long(record: VLIRRecord) -> VLIRRecord:
    """The record with every look three times over, each at a box that is a pixel smaller."""
    looks = [_smaller(step, pixels) for pixels in range(3) for step in record.steps[:-1]]
    return replace(record, steps=(*looks, record.steps[-1]))


def _smaller(step: RationaleStep, pixels: int) -> RationaleStep:
    assert step.box is not None, "every step but the last looks"
    box = replace(step.box, x1=step.box.x1 + pixels, y1=step.box.y1 + pixels)
    return RationaleStep(step.text.replace(render_box(step.box), render_box(box)), box)
