"""Every sentence of the drawn world: questions, base tasks, and the look-again rationales of the teacher.

The tokenizer is built from these sentences too (:func:`corpus`), so that a frequent phrase takes few tokens.
"""

from models.protocol import SYSTEM_PROMPT, render_box
from models.region import Box

BASE_SYSTEM_PROMPT = "You are a helpful assistant."

# Prompts of the base tasks.
READ_CARD_PROMPT = "read the card"
READ_LAST_PICTURE_PROMPT = "read the last picture"

# The rationale is cut where crops come back: LOOK [box][crop] FOUND ... One index picks the same manner
# throughout.
LOOK = (
    "The code is too small to read from here, so I look closer at the {color} card. ",
    "I cannot read the {color} card at this size. Let me zoom in on it. ",
    "To be sure I need a closer look at the {color} card. ",
    "First I find the {color} card and look at it again. ",
)
FOUND = (
    " The crop says {code}.",
    " Now I can read it: {code}.",
    " The card shows {code}.",
    " It says {code}.",
)
LOOK_SECOND = (
    " Next I look closer at the {color} card. ",
    " Now let me zoom in on the {color} card. ",
    " I also need a closer look at the {color} card. ",
    " Then I find the {color} card and look at it again. ",
)
SUM = (
    " {first} + {second} = {total}.",
    " So {first} + {second} = {total}.",
    " The sum is {first} + {second} = {total}.",
    " Together {first} + {second} = {total}.",
)
WHERE = (
    "I can see from here that the {color} card is at the {place}.",
    "No closer look is needed. The {color} card is at the {place}.",
    "I see the {color} card at the {place} of the picture.",
    "I find the {color} card at once, it is at the {place}.",
)
NUM_MANNERS = len(LOOK)


def read_question(color: str) -> str:
    """Question of kind ``read``."""
    return f"what code is on the {color} card?"


def add_question(first_color: str, second_color: str) -> str:
    """Question of kind ``add``."""
    return f"what is the sum of the numbers on the {first_color} card and the {second_color} card?"


def where_question(color: str) -> str:
    """Question of kind ``where``."""
    return f"in which quarter of the picture is the {color} card?"


def locate_prompt(color: str) -> str:
    """Prompt of the base's grounding task; the answer is :func:`box_json`."""
    return f"locate the {color} card"


def arithmetic_prompt(first: int, second: int) -> str:
    """Prompt of the base's arithmetic task; the answer is the sum in digits."""
    return f"what is {first} + {second}?"


def box_json(box: tuple[int, int, int, int]) -> str:
    """The box (pixels of the view) as the protocol has it; the base writes its boxes the same way."""
    return render_box(Box(*box, space="seen"))


def read_rationale(manner: int, color: str, code: str) -> tuple[str, str]:
    """A ``read`` rationale as (before the box, after the crop), without tags; the box goes in between."""
    return LOOK[manner].format(color=color), FOUND[manner].format(code=code)


def add_rationale(manner: int, colors: tuple[str, str], codes: tuple[str, str]) -> tuple[str, str, str]:
    """An ``add`` rationale: before the first box, between first crop and second box, after the last crop."""
    first, second = int(codes[0][1]), int(codes[1][1])
    total = SUM[manner].format(first=first, second=second, total=first + second)
    between = FOUND[manner].format(code=codes[0]) + LOOK_SECOND[manner].format(color=colors[1])
    return LOOK[manner].format(color=colors[0]), between, FOUND[manner].format(code=codes[1]) + total


def where_rationale(manner: int, color: str, place: str) -> tuple[str]:
    """A ``where`` rationale: one piece, no look."""
    return (WHERE[manner].format(color=color, place=place),)


def with_tags(pieces: tuple[str, ...], answer: str) -> tuple[str, ...]:
    """The same pieces in the protocol's final form: ``<think>...</think><answer>...</answer><|im_end|>``."""
    tagged = list(pieces)
    tagged[0] = "<think>" + tagged[0]
    tagged[-1] = f"{tagged[-1]}</think><answer>{answer}</answer><|im_end|>"
    return tuple(tagged)


def corpus() -> list[str]:
    """Texts the tokenizer is trained on: every template, its variable parts left to tokens of their own."""
    color, code, digit, place = "red", "K7", 3, "top left"
    # The base never sees the protocol's system prompt; the tokenizer only makes it short.
    texts = [SYSTEM_PROMPT, BASE_SYSTEM_PROMPT, "system\n", "user\n", "assistant\n", "\n"]
    texts += [
        READ_CARD_PROMPT,
        READ_LAST_PICTURE_PROMPT,
        locate_prompt(color),
        arithmetic_prompt(digit, digit),
    ]
    texts += [read_question(color), add_question(color, color), where_question(color), box_json((1, 2, 3, 4))]
    for manner in range(NUM_MANNERS):
        texts += with_tags(read_rationale(manner, color, code), code)
        texts += with_tags(add_rationale(manner, (color, color), (code, code)), str(digit))
        texts += with_tags(where_rationale(manner, color, place), place)
    return texts
