"""Where questions come from: the drawn world, as :class:`models.records.Question`.

Every picture is drawn from a seed, so a set of questions is a function of (split, mix, seed). The splits are
disjoint by construction (:func:`models.tiny.world.split_of`); :func:`check_no_leakage` proves it by picture
hash all the same, because a leak would flatter every number that the pipeline prints.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from models.config import QuestionMix
from models.errors import ConfigError, RecordError
from models.records import Question, png_bytes, sha256
from models.region import Box
from models.tiny import world
from models.tiny.world import Kind, Scene, Split, WorldQuestion

SOURCE = "tiny-world"
LICENCE = "Drawn by this repository; free to use under its licence."

# Scenes are so many that a repeated picture is a rarity; more misses in a row mean that a seed is stuck.
_MAX_MISSES = 1000
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class DrawnQuestion:
    """A question with what only its author knows: the scene, and which cards matter."""

    question: Question
    scene: Scene
    asked: WorldQuestion


def draw_questions(
    split: Split, mix: QuestionMix, *, seed: int, used_pictures: set[str] | None = None
) -> Iterator[DrawnQuestion]:
    """``mix.num_questions`` questions of the split, one per picture, kinds in seeded random order.

    A picture whose sha256 is in ``used_pictures`` is skipped, and every picture drawn is added to it: sets
    that share the argument share no picture. The same arguments give the same questions. Raises ConfigError
    for a mix that cannot be drawn.
    """
    used = set() if used_pictures is None else used_pictures
    rng = np.random.default_rng([seed, world.SPLITS.index(split)])
    for kind in kind_sequence(mix, rng):
        yield _fresh_question(split, kind, rng, used)


def kind_sequence(mix: QuestionMix, rng: np.random.Generator) -> list[Kind]:
    """The kind of each question: exact shares (largest remainders get the rest), shuffled.

    Raises ConfigError for an unknown kind, a negative weight, or weights that sum to zero.
    """
    unknown = sorted(set(mix.kinds) - set(world.KINDS))
    if unknown:
        raise ConfigError(
            f"Question kinds {unknown} are unknown. The drawn world has {', '.join(world.KINDS)}."
        )
    if min(mix.kinds.values(), default=0.0) < 0 or sum(mix.kinds.values()) <= 0:
        raise ConfigError(
            f"Question kinds {mix.kinds}: weights must not be negative and one must be positive."
        )
    names = [kind for kind in get_args(Kind) if mix.kinds.get(kind)]
    weights = np.array([mix.kinds[name] for name in names])
    shares = mix.num_questions * weights / weights.sum()
    counts = np.floor(shares).astype(int)
    # A stable sort gives equal remainders to the kind named first.
    for index in np.argsort(counts - shares, kind="stable")[: mix.num_questions - counts.sum()]:
        counts[index] += 1
    kinds = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return [kinds[index] for index in rng.permutation(len(kinds))]


def check_no_leakage(pictures: Mapping[str, Iterable[str]]) -> None:
    """Check that no picture (sha256) occurs in two of the named sets. Raises RecordError that names some."""
    owner: dict[str, str] = {}
    for name, hashes in pictures.items():
        distinct = set(hashes)
        shared = sorted(digest for digest in distinct if digest in owner)
        if shared:
            raise RecordError(
                f"{len(shared)} pictures are both in {owner[shared[0]]!r} and in {name!r}, for example "
                f"{', '.join(shared[:_EXAMPLES])}. Training must not see what is measured: draw a set afresh."
            )
        owner.update(dict.fromkeys(distinct, name))


def _fresh_question(split: Split, kind: Kind, rng: np.random.Generator, used: set[str]) -> DrawnQuestion:
    for _ in range(_MAX_MISSES):
        scene = world.sample_scene(rng, split)
        asked = world.ask(scene, kind, rng)
        question = make_question(scene, asked, split)
        if question.image_sha256 not in used:
            used.add(question.image_sha256)
            return DrawnQuestion(question, scene, asked)
    raise RecordError(
        f"{_MAX_MISSES} pictures of split {split!r} in a row were drawn before. Ask for fewer questions."
    )


def make_question(scene: Scene, asked: WorldQuestion, split: str) -> Question:
    """The record of a question about a scene; the id is derived from its content."""
    data = png_bytes(world.draw(scene))
    digest = sha256(data)
    identity = hashlib.sha256(f"{digest}\n{asked.text}".encode()).hexdigest()
    return Question(
        id=f"{SOURCE}-{identity[:16]}",
        source=SOURCE,
        split=split,
        image_bytes=data,
        image_sha256=digest,
        width=world.PICTURE_SIZE,
        height=world.PICTURE_SIZE,
        text=asked.text,
        answers=(asked.answer,),
        gold_boxes=tuple(Box(*scene.cards[target].box, space="original") for target in asked.targets),
        licence=LICENCE,
        kind=asked.kind,
    )
