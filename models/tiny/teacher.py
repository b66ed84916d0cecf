"""The embedded teacher: an engine that knows the scenes, and is imperfect on purpose.

It takes the place of the large model that writes rationales in the paper (3.1.1), and goes through the same
look-again loop. It knows where the cards are, but it *reads* a code only through a crop that covers it;
through any other crop it guesses. How often it looks at the wrong card, misreads, looks without need, muddles
its reasoning or breaks the format is set in :class:`models.config.VLIRConfig`, so that rejection sampling and
the filters have real work.

Its boxes are more generous than the cards (``box_growth``): such a box passes every filter, but the pixel
budget takes away the zoom, so a student that copies it reads worse than it could. That tighter boxes read
better is left for R-GRPO to discover.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np

from models.config import VLIRConfig
from models.engine import ScriptedEngine
from models.errors import EngineError
from models.protocol import render_box
from models.region import Box, Size, View, snap_outwards
from models.tiny import phrases, world
from models.tiny.world import Card, Scene, WorldQuestion
from models.trajectory import CropSpan, GenerationRequest, SampledSpan

Item = TypeVar("Item")
Muddle = Literal["repeat", "contradict", "wrong_sum", "skip", "ramble"]
Junk = Literal["bad_json", "inverted", "original_pixels", "no_tags", "no_answer", "endless"]

# Sentences that a rambling teacher drops in: true or not, they lead nowhere.
RAMBLES = (
    " Pictures like this one are often used in puzzles.",
    " The weather must have been nice that day.",
    " Colours can be beautiful.",
    " I like this kind of task.",
    " Rectangles have four sides.",
    " This card was surely printed with care.",
)
_ENDLESS_REPEATS = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """What the teacher is about to do for one attempt, imperfections included.

    ``looks`` pairs the colour it says with the box (seen pixels) it asks for. The last ``len(asked.targets)``
    looks are those the question needs.
    """

    manner: int
    looks: tuple[tuple[str, Box], ...]
    needless: bool
    wrong_region: bool
    misplaces: bool
    muddle: Muddle | None
    junk: Junk | None


@dataclass(slots=True)
class _Attempt:
    """One attempt while it goes on."""

    scene: Scene
    asked: WorldQuestion
    plan: Plan
    rng: np.random.Generator
    codes: list[str]


class EmbeddedTeacher(ScriptedEngine):
    """An engine for questions about known scenes. ``scenes`` maps a question's id to its scene and question.

    The loop names its requests ``<question id>#<sample index>``; that is how the teacher knows what it is
    asked. An attempt is a function of the seed of its first request. Tokens are characters.
    """

    def __init__(self, config: VLIRConfig, scenes: Mapping[str, tuple[Scene, WorldQuestion]]) -> None:
        super().__init__(self._write)
        self._config = config
        self._scenes = scenes
        self._attempts: dict[str, _Attempt] = {}

    def abort(self, request_id: str) -> None:
        """Forget an attempt."""
        super().abort(request_id)
        self._attempts.pop(request_id, None)

    def close(self) -> None:
        """Forget everything."""
        super().close()
        self._attempts.clear()

    def _write(self, request: GenerationRequest) -> str:
        """The next turn of an attempt: what it read, then where it looks next, or its answer."""
        turn = sum(isinstance(span, SampledSpan) for span in request.spans)
        if turn == 0:
            self._attempts[request.request_id] = self._begin(request)
        attempt = self._attempts[request.request_id]
        if 0 < turn <= len(attempt.plan.looks):
            attempt.codes.append(_read(attempt, request, self._config.misread_rate))
        text = _next_text(attempt, turn)
        if turn >= len(attempt.plan.looks):
            del self._attempts[request.request_id]
        return text

    def _begin(self, request: GenerationRequest) -> _Attempt:
        question_id = request.request_id.rpartition("#")[0]
        if question_id not in self._scenes:
            raise EngineError(
                f"The embedded teacher does not know question {question_id!r}. "
                "It only answers about the scenes it was given."
            )
        scene, asked = self._scenes[question_id]
        rng = np.random.default_rng(request.seed)
        seen = request.prompt.pictures[0].size
        plan = make_plan(scene, asked, seen=seen, config=self._config, rng=rng)
        return _Attempt(scene, asked, plan, rng, codes=[])


def make_plan(
    scene: Scene, asked: WorldQuestion, *, seen: Size, config: VLIRConfig, rng: np.random.Generator
) -> Plan:
    """Draw the manner, the boxes and the imperfections of one attempt. ``seen`` is the size of the view."""
    order = list(asked.targets)
    others = [index for index in range(len(scene.cards)) if index not in asked.targets]
    needless = bool(others) and bool(rng.random() < config.needless_look_rate)
    if needless:
        order.insert(0, _choose(others, rng))
    shown = list(order)
    strangers = [index for index in others if index not in order]
    wrong_region = bool(asked.targets and strangers) and bool(rng.random() < config.wrong_region_rate)
    if wrong_region:
        shown[-1 - int(rng.integers(len(asked.targets)))] = _choose(strangers, rng)
    looks = tuple(
        (scene.cards[named].color, jittered_box(scene.cards[card], seen=seen, config=config, rng=rng))
        for named, card in zip(order, shown, strict=True)
    )
    muddles = [muddle for muddle in get_args(Muddle) if _can_muddle(muddle, asked)]
    return Plan(
        manner=int(rng.integers(phrases.NUM_MANNERS)),
        looks=looks,
        needless=needless,
        wrong_region=wrong_region,
        misplaces=bool(rng.random() < config.misread_rate),
        muddle=_choose(muddles, rng) if rng.random() < config.muddled_rate else None,
        junk=_choose(get_args(Junk), rng) if rng.random() < config.junk_rate else None,
    )


def jittered_box(card: Card, *, seen: Size, config: VLIRConfig, rng: np.random.Generator) -> Box:
    """A box around a card in seen pixels: each edge moves outwards by a normal share of its side.

    The mean of that share is ``box_growth``, its standard deviation ``box_jitter``. Corners lie on the
    lattice of the world, as the base model writes them.
    """
    view = View(Size(world.PICTURE_SIZE, world.PICTURE_SIZE), seen)
    box = view.convert(Box(*card.box, space="original"), "seen")
    step = max(1, round(world.LATTICE * seen.width / world.PICTURE_SIZE))
    left, top, right, bottom = rng.normal(config.box_growth, config.box_jitter, 4)

    def snapped(corner: float, limit: int) -> float:
        return float(step * round(min(max(corner, 0.0), float(limit)) / step))

    return Box(
        x1=snapped(box.x1 - left * box.width, seen.width),
        y1=snapped(box.y1 - top * box.height, seen.height),
        x2=snapped(box.x2 + right * box.width, seen.width),
        y2=snapped(box.y2 + bottom * box.height, seen.height),
        space="seen",
    )


def covers(box: Box, card: Card, view: View) -> bool:
    """True when the crop of a box (seen pixels) shows the card's whole code."""
    text = Box(*card.text_box, space="original")
    original = view.convert(box, "original")
    return original.intersection(text) > 0 and snap_outwards(original, view.original).coverage_of(text) == 1.0


def _read(attempt: _Attempt, request: GenerationRequest, misread_rate: float) -> str:
    """The code that the teacher believes to see in what the last crop command brought."""
    given = request.spans[-1]
    view = View(Size(world.PICTURE_SIZE, world.PICTURE_SIZE), request.prompt.pictures[0].size)
    covered = [
        card.code
        for card in attempt.scene.cards
        if isinstance(given, CropSpan) and covers(given.box, card, view)
    ]
    code = covered[0] if covered else _random_code(attempt.rng)
    return _misread(code, attempt.rng) if attempt.rng.random() < misread_rate else code


def _next_text(attempt: _Attempt, turn: int) -> str:
    """The words of one turn, tags and crop command included."""
    plan = attempt.plan
    if turn == 0 and plan.junk == "endless":
        return "<think>" + _choose(RAMBLES, attempt.rng) * _ENDLESS_REPEATS
    opening = "<think>" if turn == 0 and plan.junk != "no_tags" else ""
    if turn < len(plan.looks):
        return opening + _found(attempt, turn) + _look(plan, turn)
    conclusion, answer = _conclude(attempt)
    closing = "" if plan.junk == "no_tags" else "</think>"
    if plan.junk == "no_answer":
        return opening + conclusion + closing
    return f"{opening}{conclusion}{closing}<answer>{answer}</answer>"


def _look(plan: Plan, turn: int) -> str:
    """The sentence that announces a look, and the crop command."""
    color, box = plan.looks[turn]
    sentence = (phrases.LOOK if turn == 0 else phrases.LOOK_SECOND)[plan.manner].format(color=color)
    if turn == 0 and plan.junk == "inverted":
        box = replace(box, x1=box.x2, x2=box.x1)
    if turn == 0 and plan.junk == "original_pixels":
        x1, y1, x2, y2 = (world.VIEW_SCALE * corner for corner in box.corners())
        box = Box(x1, y1, x2, y2, space="seen")
    command = render_box(box)
    if turn == 0 and plan.junk == "bad_json":
        # Three numbers instead of four.
        command = command[: command.rindex(",")] + "]}"
    return sentence + command


def _found(attempt: _Attempt, turn: int) -> str:
    """The sentence about the crop that the turn before asked for; empty in the first turn."""
    if turn == 0:
        return ""
    plan, code = attempt.plan, attempt.codes[turn - 1]
    sentence = phrases.FOUND[plan.manner].format(code=code)
    is_last = turn == len(plan.looks)
    if not is_last or plan.muddle is None:
        return sentence
    if plan.muddle == "contradict" and attempt.asked.kind == "read":
        return phrases.FOUND[plan.manner].format(code=_misread(code, attempt.rng))
    return {"repeat": sentence * 2, "skip": "", "ramble": sentence + _ramble(attempt)}.get(
        plan.muddle, sentence
    )


def _conclude(attempt: _Attempt) -> tuple[str, str]:
    """(what the teacher says last, its answer)."""
    plan, asked = attempt.plan, attempt.asked
    found = _found(attempt, len(plan.looks))
    if asked.kind == "read":
        return found, attempt.codes[-1]
    if asked.kind == "add":
        first, second = (int(code[1]) for code in attempt.codes[-2:])
        total = first + second
        said = total + _slip(attempt) if plan.muddle in ("wrong_sum", "contradict") else total
        return found + phrases.SUM[plan.manner].format(first=first, second=second, total=said), str(total)
    card = attempt.scene.cards[asked.named[0]]
    place = world.place_of(card)
    if plan.misplaces:
        place = _elsewhere(attempt, place)
    shown = _elsewhere(attempt, place) if plan.muddle == "contradict" else place
    sentence = phrases.WHERE[plan.manner].format(color=card.color, place=shown)
    # After a needless look it follows a sentence, so it needs a space; alone it opens the turn.
    sentence = f" {sentence}" if found else sentence
    if not plan.looks and plan.muddle == "repeat":
        sentence = f"{sentence} {sentence}"
    if not plan.looks and plan.muddle == "ramble":
        sentence += _ramble(attempt)
    return found + sentence, place


def _can_muddle(muddle: Muddle, asked: WorldQuestion) -> bool:
    """A sum can only be wrong where there is one; a question that needs no look has no reading to skip."""
    return {"wrong_sum": asked.kind == "add", "skip": asked.kind != "where"}.get(muddle, True)


def _slip(attempt: _Attempt) -> int:
    return 1 if attempt.rng.random() < 0.5 else -1


def _elsewhere(attempt: _Attempt, place: str) -> str:
    return _choose([other for other in world.PLACES if other != place], attempt.rng)


def _ramble(attempt: _Attempt) -> str:
    return _choose(RAMBLES, attempt.rng)


def _random_code(rng: np.random.Generator) -> str:
    return _choose(world.LETTERS, rng) + _choose(world.DIGITS, rng)


def _misread(code: str, rng: np.random.Generator) -> str:
    """The code with its letter or its digit mistaken for another."""
    letter, digit = code[0], code[1]
    if rng.random() < 0.5:
        return _choose(world.LETTERS.replace(letter, ""), rng) + digit
    return letter + _choose(world.DIGITS.replace(digit, ""), rng)


def _choose(items: Sequence[Item], rng: np.random.Generator) -> Item:
    return items[int(rng.integers(len(items)))]
