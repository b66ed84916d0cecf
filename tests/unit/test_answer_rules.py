"""Where each kind of model writes its answer: only that is scored, and a text without the form has none."""

import pytest

from models.answer_rules import read_answer


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        ("whole", "I think B.", "I think B."),
        ("whole", "", ""),
        ("answer_tag", "<think>A? no</think><answer> B </answer>", "B"),
        ("answer_tag", "<answer>A</answer> wait <answer>B</answer>", "B"),
        ("answer_tag", "<think>A</think> B", None),
        ("answer_tag_or_end", "<think>A</think><answer>B</answer>", "B"),
        ("answer_tag_or_end", "<think>A</think>\n\nThe answer is B.", "The answer is B."),
        ("answer_tag_or_end", "<think>A, and on and on", None),
        ("conclusion_tag", "<REASONING>A</REASONING>\n<CONCLUSION> B\n</CONCLUSION>", "B"),
        ("conclusion_tag", "<CONCLUSION>A</CONCLUSION><CONCLUSION>B</CONCLUSION>", "B"),
        ("conclusion_tag", "<CONCLUSION>B", None),
        ("final_answer_is", "### Step 1: A\n### The final answer is: B", "B"),
        ("final_answer_is", "### The final answer is:\nThe final answer is: B.\n", "B."),
        ("final_answer_is", "the Final Answer is : 3", "3"),
        ("final_answer_is", "The final answer is:", ""),
        ("final_answer_is", "### Step 1: the answer is A", None),
    ],
)
def test_the_answer_of_a_text(rule, text: str, answer: str | None) -> None:
    assert read_answer(text, rule) == answer
