"""What a teacher is asked: the two prompts of appendix B.1, and whether a given crop command came back whole.

The loop sends no system prompt with them: each says by itself how to look. Boxes are annotated in pixels of
the original picture; the teacher writes in pixels of the picture that it sees, so they are converted first,
and rounded to whole pixels inside that picture.

Where the paper is silent: several annotated boxes become several crop commands, one per line. Boxes that the
loop would refuse (too small, too long, beyond the picture, more of them than crops are allowed) cannot be
asked for, so such a question gets the prompt without boxes; a box annotated twice is asked for once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from models.config import Look
from models.protocol import box_literals, render_box
from models.records import Question
from models.region import Box, BoxFault, Size, View, find_fault
from models.rollout import Asked
from models.vlir_config import PromptChoice

LISTING_1, LISTING_2 = "listing-1", "listing-2"
# The bare question under the system prompt of section 3.2: what the drawn world's author is asked.
BARE_QUESTION = "question"

# Listing 1 of the paper; the question follows.
_WITHOUT_BOX = (
    'You are performing "Multimodal Interleaved Reasoning". During the thinking process, you need to keep an '
    "eye on the visual cues in the original image, find regions of the image that help answer the question, "
    'and use the "Crop" tool to crop and zoom in for detailed analysis.\n'
    "When using the tool, you must output a JSON object in the following format:\n"
    '{"bbox_2d": [x1, y1, x2, y2]}\n'
    'Ensure that you "Crop" at least once.\n'
    "Continue thinking after each operation until you reach the final answer.\n"
    "Output the thinking process within a pair of <think> </think> tags and then output the final answer "
    "within a pair of <answer> </answer> tags.\n"
)
# Listing 2 of the paper, up to the question.
_WITH_BOX = (
    'I will now provide you with an image, a question, and a "Crop" operation string. Your task is to write '
    "the reasoning process used to answer the question as instructed. During the reasoning process, the "
    'respondent utilizes a "Crop" operation to assist with reasoning. The format of the operation is as '
    "follows:\n"
    '{"bbox_2d": [x1, y1, x2, y2]}\n'
    "This bounding box indicates the key region that needs to be focused on to correctly answer the "
    "question.\n"
    'You must think step by step from the perspective of the respondent, using the "Crop" operation at '
    "appropriate moments in your reasoning process to eventually reach the correct answer. Important notes:\n"
    '1. You must not modify the content or format of the "Crop" operation in any way.\n'
    "2. In a real setting, the respondent only has access to the image and the question. This bounding box "
    "indicates the area where the correct answer information is located. In this task, they are provided to "
    "ensure the correctness of your reasoning process. When writing the reasoning, pretend you are the "
    'respondent who independently identifies when to use the "Crop" operation and how to reach the answer '
    "step by step.\n"
    "3. Make sure the reasoning is fluent, logical, and concise.\n"
    "4. Format of the reasoning process: <think>...</think><answer>...</answer>\n"
    "\n"
    "Here is an example:\n"
    "Question: Are there any black numbers or letters?\n"
    '"Crop" operation: {"bbox_2d": [247, 384, 307, 444]}\n'
    "Reasoning: <think>\n"
    "Step 1: To determine if there are black numbers or letters, I need to focus on the text visible in the "
    "image. The dog is wearing a heart-shaped tag that has some text on it. I will crop and zoom in on the "
    'tag for a closer look at the text details. {"bbox_2d": [247, 384, 307, 444]}\n'
    'Step 2: After cropping, I can see that the letters "G PLUS" are in red, and the numbers "6 223 13" are '
    "also in red. There are no black numbers or letters on the tag. Review the rest of the image, there are "
    "no black numbers or letters either.</think>\n"
    "<answer>no</answer>\n"
    "\n"
)
_WITH_BOX_CLOSING = "\nNow Output the reasoning process:"


@dataclass(frozen=True, slots=True)
class AskedTeacher:
    """A question as the teacher gets it, and the crop commands that must come back (none in Listing 1).

    ``refused`` says why the annotated boxes were left out where they were asked for; else it is empty.
    """

    asked: Asked
    prompt_id: str
    operations: tuple[str, ...] = ()
    refused: str = ""


def ask(question: Question, image: Image.Image, look: Look, choice: PromptChoice) -> AskedTeacher:
    """The question for a teacher, with the prompt that ``choice`` names. ``image`` is its decoded picture.

    "auto" gives Listing 2 to a question with annotated boxes. Raises RegionError for a picture that cannot
    be used.
    """
    view = View.of(Size(image.width, image.height), look.budget)
    boxes: tuple[Box, ...] = ()
    refused = ""
    if choice == "box" or (choice == "auto" and question.gold_boxes):
        boxes = to_seen(question.gold_boxes, view)
        refused = find_refused(boxes, view, look)
        boxes = () if refused else boxes
    text = box_prompt(question.text, boxes) if boxes else question_prompt(question.text)
    unprompted = look.model_copy(update={"system": None})
    asked = Asked.about(question.id, text, [image], unprompted, files=[question.image_bytes])
    prompt_id = LISTING_2 if boxes else LISTING_1
    return AskedTeacher(asked, prompt_id, tuple(map(crop_operation, boxes)), refused)


def question_prompt(question: str) -> str:
    """Listing 1: look where you like, at least once."""
    return _WITHOUT_BOX + question


def box_prompt(question: str, boxes: Sequence[Box]) -> str:
    """Listing 2: write the reasoning that looks at these boxes (seen pixels), one crop command per line."""
    commands = "\n".join(map(crop_operation, boxes))
    return f'{_WITH_BOX}Question:{question}\n"Crop" operation:{commands}{_WITH_BOX_CLOSING}'


def crop_operation(box: Box) -> str:
    """The crop command for a box in seen pixels, exactly as the teacher must repeat it."""
    return render_box(box)


def to_seen(boxes: Sequence[Box], view: View) -> tuple[Box, ...]:
    """Boxes in whole seen pixels inside the picture, in the order given; equal ones once."""
    return tuple(dict.fromkeys(_whole(view.convert(box, "seen"), view.seen) for box in boxes))


def find_refused(boxes: Sequence[Box], view: View, look: Look) -> str:
    """Why the loop would refuse these boxes (seen pixels); empty when it would cut every one of them."""
    if not boxes:
        return "the question has no annotated box"
    if len(boxes) > look.max_crops:
        return f"{len(boxes)} annotated boxes, at most {look.max_crops} crops are allowed"
    for index, box in enumerate(boxes):
        fault = find_fault(
            box,
            view,
            tuple(boxes[:index]),
            min_side=look.min_side,
            max_aspect_ratio=look.max_aspect_ratio,
            repeated_iou=look.repeated_iou,
        )
        if fault is not None:
            return f"annotated box {crop_operation(box)} in the seen picture: {_FAULTS[fault]}"
    return ""


_FAULTS = {
    BoxFault.INVERTED_BOX: "it encloses nothing",
    BoxFault.OUTSIDE_IMAGE: "it lies outside",
    BoxFault.TOO_SMALL: "it is too small",
    BoxFault.ASPECT_RATIO: "it is too long",
    BoxFault.REPEATED_BOX: "it repeats another one",
}


def box_came_back(text: str, operations: Sequence[str]) -> str:
    """How the crop commands in a turn differ from those that were given; empty when they do not.

    Each given one occurs unmodified, and no other is written. One written twice is for the loop to refuse.
    """
    written = box_literals(text)
    other = next((literal for literal in written if literal not in operations), None)
    if other is not None:
        return f"wrote {other}, was given {' '.join(operations)}"
    missing = next((operation for operation in operations if operation not in written), None)
    return "" if missing is None else f"never wrote {missing}"


def _whole(box: Box, size: Size) -> Box:
    """Rounded to whole pixels and clipped to the picture."""
    x1, x2 = (min(max(round(value), 0), size.width) for value in (box.x1, box.x2))
    y1, y2 = (min(max(round(value), 0), size.height) for value in (box.y1, box.y2))
    return Box(x1, y1, x2, y2, box.space)
