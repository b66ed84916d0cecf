"""A built set of the drawn world: small, and real in every part."""

from pathlib import Path

from models.config import QuestionMix, VLIRConfig
from models.presets import load_preset
from models.run_config import VLIRRun
from models.vlir.build import build_vlir

KINDS = {"read": 0.6, "add": 0.25, "where": 0.15}


def build_small_set(out: Path, *, num_questions: int = 40, num_others: int = 8) -> Path:
    """Build a set with rationales about so many questions in ``out``, and return it.

    R-GRPO and the evaluation get ``num_others`` questions each.
    """
    preset = load_preset("tiny")
    few = QuestionMix(num_questions=num_others, kinds=KINDS)
    request = VLIRRun(
        vlir=VLIRConfig(num_questions=num_questions, num_validation_questions=8, kinds=KINDS),
        look=preset.look,
        engine=preset.engine,
        seed=0,
        rgrpo_questions=few,
        evaluation_questions=few,
    )
    build_vlir(request, out=out, work=out.with_name(out.name + ".shards"))
    return out
