"""The reward of one trajectory, section 3.3 of the paper: accuracy + format + region validity + length.

The paper leaves words undefined; here they mean:

* *correct final answer*: the last ``<answer>`` equals a gold answer (:func:`models.answers.matches`);
* *correct <answer> tag format* (``think-then-answer``): exactly one ``<think>`` block followed by one
  non-empty ``<answer>`` and nothing else (:func:`models.protocol.is_well_formed`);
* *syntactically correct and non-redundant bounding box command* (``shown``): one that the loop answered with
  a crop. Refused are bad JSON, inverted, outside, too small or too long boxes, and, as *redundant*, a box
  whose IoU with an earlier accepted one reaches ``look.repeated_iou``;
* *per character for generating reasoning steps* (``all-reasoning``): characters before ``<answer>``, without
  tags, crop commands and surrounding white space (:func:`models.protocol.reasoning_text`).

The authors' released code asks something else of three of them, which are rules of their own here:

* ``ends-with-answer``: an ``<answer>`` that is closed where the text ends, whatever is before;
* ``parsed``: distinct objects in braces that speak of a "bbox" and are JSON with a ``bbox_2d``, usable or
  not; none when one of them is broken;
* ``shortest-stretch``: characters of the shortest stretch of reasoning between crop commands, white space
  collapsed. Empty stretches between two commands are none; the first and the last count, empty or not.

Whatever the rule, a trajectory that a limit cut off has no format reward, and only text that the model
sampled is read: what we told it about a refused box earns nothing.
"""

import json
import re
from collections.abc import Sequence

from models.answers import matches
from models.config import Look, RewardConfig
from models.protocol import ANSWER_STOP, extract_answer, is_well_formed, reasoning_text, render_box
from models.records import Question
from models.region import Box
from models.trajectory import BoxEvent, Prompt, Reward, SampledSpan, StopReason, Trajectory
from models.transcripts import Transcript

_OBJECT = re.compile(r"\{[^}]*\}")
_CROP_COMMAND = re.compile(r'\{"bbox_2d":\s*\[[^\]]*\]\}')
# More than any length reward pays for.
_MANY_CHARACTERS = 10_000


def score(trajectory: Trajectory, question: Question, config: RewardConfig) -> Reward | None:
    """The weighted and capped parts of r_i; None when we broke (engine failure, abort, a prompt that fills
    the context): such a trajectory stays unscored, for a reward of 0 would teach the model our failure.

    Raises ValueError when the question has no gold answer or is not the trajectory's.
    """
    if trajectory.question_id != question.id:
        raise ValueError(f"Trajectory of question {trajectory.question_id!r} scored against {question.id!r}.")
    if trajectory.is_our_failure:
        return None
    correct = matches(extract_answer(trajectory.sampled_text), question.answers)
    return reward_of(trajectory, is_correct=correct, config=config)


def reward_of(trajectory: Trajectory | Transcript, *, is_correct: bool, config: RewardConfig) -> Reward:
    """The weighted and capped parts of r_i, given whether the final answer is correct."""
    follows_format = not trajectory.stop.is_truncated and _follows_format(trajectory.sampled_text, config)
    earns_boxes = is_correct or not config.validity_needs_correct
    return Reward(
        accuracy=config.accuracy * is_correct,
        format=config.format * follows_format,
        validity=min(config.validity_cap, config.validity * _num_boxes(trajectory, config)) * earns_boxes,
        length=min(config.length_cap, config.length_per_character * _num_characters(trajectory, config)),
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


def differ_in_length_only(rewards: Sequence[Reward]) -> bool:
    """True when the parts of all rewards but the length are equal."""
    return len({(reward.accuracy, reward.format, reward.validity) for reward in rewards}) == 1


def _follows_format(text: str, config: RewardConfig) -> bool:
    if config.format_rule == "think-then-answer":
        return is_well_formed(text)
    body, closing, rest = text.rpartition(ANSWER_STOP)
    return bool(closing) and not rest.strip() and "<answer>" in body


def _num_boxes(trajectory: Trajectory | Transcript, config: RewardConfig) -> int:
    if config.validity_rule == "shown":
        return len(trajectory.accepted_boxes)
    literals = [found for found in _OBJECT.findall(trajectory.sampled_text) if "bbox" in found]
    commands = {_canonical(literal) for literal in literals}
    return 0 if None in commands else len(commands)


def _canonical(literal: str) -> str | None:
    """A crop command in one spelling, so that the same one is counted once; None when it is none."""
    try:
        command = json.loads(literal)
        return json.dumps(command, sort_keys=True) if "bbox_2d" in command else None
    except (ValueError, RecursionError):
        return None


def _num_characters(trajectory: Trajectory | Transcript, config: RewardConfig) -> int:
    if config.length_rule == "all-reasoning":
        return len(reasoning_text(trajectory.sampled_text))
    before_answer = trajectory.sampled_text.split("<answer>")[0].strip()
    thinking = " ".join(before_answer.replace("<think>", "").replace("</think>", "").split())
    first, *others = (stretch.strip() for stretch in _CROP_COMMAND.split(thinking))
    between = [stretch for stretch in others[:-1] if stretch]
    return min(map(len, (first, *between, *others[-1:])))
