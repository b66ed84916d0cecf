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
from models.config import Look, RewardConfig
from models.protocol import extract_answer, is_well_formed, reasoning_text, render_box
from models.records import Question
from models.region import Box
from models.trajectory import BoxEvent, Prompt, Reward, SampledSpan, StopReason, Trajectory

# More than any length reward pays for.
_MANY_CHARACTERS = 10_000


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


def reward_floor(config: RewardConfig, look: Look) -> tuple[float, float]:
    """What a wrong and a right answer earn in full style: all crops that are allowed, reasoning without end,
    the right form.

    The first over the second is the share that can be earned without sight. Both come from :func:`score`.
    """
    boxes = [Box(0, 0, 10.0 + number, 10.0, space="seen") for number in range(look.max_crops)]
    prose = "a" * _MANY_CHARACTERS
    thought = "".join(f"{prose} {render_box(box)} " for box in boxes) + prose
    question = Question("floor", "", "", b"", "", 1, 1, text="?", answers=("right",))
    totals = []
    for answer in ("wrong", "right"):
        span = SampledSpan(f"<think>{thought}</think><answer>{answer}</answer>")
        events = tuple(BoxEvent(box) for box in boxes)
        trajectory = Trajectory("floor", 0, Prompt("?"), (span,), events, StopReason.ANSWERED)
        reward = score(trajectory, question, config)
        assert reward is not None, "nobody broke"
        totals.append(reward.total)
    return totals[0], totals[1]
