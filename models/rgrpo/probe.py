"""What crops are worth to the policy: held-out questions answered twice, with crops and with blank ones.

Greedily, by the engine that samples, from the weights that it has: the difference of the two accuracies is
what the pixels of a crop add, for a blank crop has its size, its tokens and its place in the text.
"""

from collections.abc import Sequence

from models import distributed
from models.answers import matches
from models.config import Look
from models.protocol import extract_answer
from models.records import Question
from models.rgrpo.guards import CROP_GAIN
from models.rgrpo.samplers import Sampler
from models.trajectory import Trajectory


def measure_crop_gain(sampler: Sampler, questions: Sequence[Question], *, look: Look) -> dict[str, float]:
    """Accuracies (0 to 1) over the questions of all ranks, and their difference; all ranks call it.

    ``questions`` are this rank's. An attempt that we broke is left out of its side; a side without attempts
    gives nothing.
    """
    blank = look.model_copy(update={"crop_source": "blank"})
    sides = [_counts(sampler.roll_out(questions, look=one), questions) for one in (look, blank)]
    right, num, right_blank, num_blank = distributed.global_sums([value for side in sides for value in side])
    if not num or not num_blank:
        return {}
    accuracy, accuracy_blank = right / num, right_blank / num_blank
    return {
        "rgrpo/probe/accuracy": accuracy,
        "rgrpo/probe/accuracy_blank": accuracy_blank,
        CROP_GAIN: accuracy - accuracy_blank,
    }


def _counts(trajectories: Sequence[Trajectory], questions: Sequence[Question]) -> tuple[int, int]:
    """Right answers, and attempts that were ours to score."""
    right = [
        matches(extract_answer(trajectory.sampled_text), question.answers)
        for trajectory, question in zip(trajectories, questions, strict=True)
        if not trajectory.is_our_failure
    ]
    return sum(right), len(right)
