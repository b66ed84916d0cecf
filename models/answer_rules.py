"""Where different models write their answer when they are asked directly.

A model that was trained to reason ends in a form of its own. Only the answer is scored: a rationale that
mentions another option must not count. Without its form a text holds no answer.
"""

import re
from typing import Literal

from models.protocol import extract_answer

AnswerRule = Literal["whole", "answer_tag", "answer_tag_or_end", "conclusion_tag", "final_answer_is"]

_CONCLUSION = re.compile(r"<CONCLUSION>(.*?)</CONCLUSION>", re.DOTALL | re.IGNORECASE)
_FINAL_ANSWER = re.compile(r"the final answer is\s*:", re.IGNORECASE)
_THOUGHT_END = "</think>"


def read_answer(text: str, rule: AnswerRule) -> str | None:
    """The answer in a text; None when the text does not have the form.

    * ``whole``: all of it (a model that just answers);
    * ``answer_tag``: the body of the last ``<answer>`` (Vision-R1);
    * ``answer_tag_or_end``: the same; where there is no such tag, what follows ``</think>`` (R1-Onevision,
      whose authors score a text without the tag whole: Fancy-MLLM/R1-Onevision @33c00622, grpo_jsonl.py);
    * ``conclusion_tag``: the body of the last ``<CONCLUSION>`` (LLaVA-CoT);
    * ``final_answer_is``: what follows the last "The final answer is:" (Mulberry).
    """
    match rule:
        case "whole":
            return text
        case "answer_tag":
            return extract_answer(text)
        case "answer_tag_or_end":
            answer = extract_answer(text)
            return _after(text, _THOUGHT_END) if answer is None else answer
        case "conclusion_tag":
            bodies = _CONCLUSION.findall(text)
            return bodies[-1].strip() if bodies else None
        case "final_answer_is":
            *_, after = _FINAL_ANSWER.split(text)
            return after.strip() if after != text else None


def _after(text: str, mark: str) -> str | None:
    _, found, after = text.rpartition(mark)
    return after.strip() if found else None
