"""The reward of one trajectory, section 3.3 of the paper: accuracy + format + region validity + length.

The paper leaves words undefined; here they mean:

* *correct final answer*: the last ``<answer>`` equals a gold answer (:func:`models.answers.matches`);
* *correct <answer> tag format*: exactly one ``<think>`` block followed by one non-empty ``<answer>`` and
  nothing else (:func:`models.protocol.is_well_formed`). A trajectory that a limit cut off has no format
  reward;
* *syntactically correct and non-redundant bounding box command*: one that the loop answered with a crop.
  Refused are bad JSON, inverted, outside, too small or too long boxes, and, as *redundant*, a box whose IoU
  with an earlier accepted one reaches ``look.repeated_iou``;
* *per character for generating reasoning steps*: characters before ``<answer>``, without tags, crop commands
  and surrounding white space (:func:`models.protocol.reasoning_text`).

Only text that the model sampled is read: what we told it about a refused box earns nothing.
"""

from models.answers import matches
from models.config import RewardConfig
from models.protocol import extract_answer, is_well_formed, reasoning_text
from models.records import Question
from models.trajectory import Reward, Trajectory


def score(trajectory: Trajectory, question: Question, config: RewardConfig) -> Reward | None:
    """The weighted and capped parts of r_i; None when we broke (engine failure, abort): such a trajectory
    stays unscored, for a reward of 0 would teach the model our failure.

    Raises ValueError when the question has no gold answer or is not the trajectory's.
    """
    if trajectory.question_id != question.id:
        raise ValueError(f"Trajectory of question {trajectory.question_id!r} scored against {question.id!r}.")
    if trajectory.stop.is_our_failure:
        return None
    written = trajectory.sampled_text
    correct = matches(extract_answer(written), question.answers)
    well_formed = is_well_formed(written) and not trajectory.stop.is_truncated
    return Reward(
        accuracy=config.accuracy * correct,
        format=config.format * well_formed,
        validity=min(config.validity_cap, config.validity * len(trajectory.accepted_boxes)),
        length=min(config.length_cap, config.length_per_character * len(reasoning_text(written))),
    )
