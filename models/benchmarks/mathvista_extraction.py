"""What a language model is asked when no rule finds the answer in a reply to a question of MathVista.

The form is that of lupantech/MathVista @53d52587 (evaluation/extract_answer.py, its prompts/ext_ans.py): a
demonstration for each of the five types of answer, the row's ``query`` with its hint, the reply, and a line
to complete. The demonstrations are our own. Two additions: the model may say ``none``, and the reply stands
between marks.
"""

from models.benchmarks.judging import GUARD

NO_ANSWER = "none"
LABEL = "Extracted answer:"

_DEMONSTRATIONS = (
    (
        "Hint: Please answer the question requiring an integer answer and provide the final value, "
        "e.g., 1, 2, 3, at the end.\nQuestion: How many lamps are lit?",
        "Of the seven lamps in the hall, three are dark, so there are 4 that are lit.",
        "4",
    ),
    (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and "
        "provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: What share of the pie is rent?",
        "Rent takes up three of the ten slices, a share of 0.3.",
        "0.3",
    ),
    (
        "Hint: Please answer the question requiring a floating-point number with two decimal places and "
        "provide the final value, e.g., 1.23, 1.34, 1.45, at the end.\n"
        "Question: What do a pencil and a ruler cost together? (Unit: $)",
        "The pencil is $0.65 and the ruler $1.20, which makes $1.85 altogether.",
        "1.85",
    ),
    (
        "Hint: Please answer the question requiring a Python list as an answer and provide the final list, "
        "e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.\nQuestion: In which two months was there no rain?",
        "The bars are missing for month 6 and for month 8.",
        "[6, 8]",
    ),
    (
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the "
        "end.\nQuestion: Which angle is the largest?\nChoices:\n(A) 30°\n(B) 45°\n(C) 105°",
        "The obtuse one must be the largest, and that is 105°.",
        "C",
    ),
)


def _demonstration(number: int, query: str, reply: str, answer: str) -> str:
    return f"{query}\nModel response: [begin {number}]\n{reply}\n[end {number}]\n{LABEL} {answer}"


TEMPLATE = (
    "A model replied to a question about a picture. Read the examples, then extract the model's final answer "
    "from its reply in the form that the hint asks for: a number without its unit, a list, or the letter of "
    f"an option. Extract what the reply says, even if it is wrong. {GUARD} Write the extracted answer and "
    f"nothing else, or {NO_ANSWER} when the reply gives no final answer.\n\n"
    + "\n\n".join(_demonstration(number, *each) for number, each in enumerate(_DEMONSTRATIONS))
    + f"\n\n{{question}}\nModel response: {{answer}}\n{LABEL}"
)
REMINDER = (
    "Write the extracted answer alone: a number without its unit, a list such as [1, 2], the letter of an "
    f"option, or {NO_ANSWER}."
)
