"""Questions that follow others: what was asked and answered before becomes context of the question now.

A reply is kept as text; the crops that belonged to it are cut again by the loop itself, so that the model
finds its earlier turns as it left them. Pictures are numbered over the whole conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from PIL import Image

from models.config import Look
from models.protocol import STOPS, split_at_commands
from models.rollout import Asked, Episode
from models.trajectory import AS_MANY_AS_FIT, CropSpan, Exchange, Finish, Piece, Prompt, SampledSpan, Span

# Of one reply. A reply of ours has a few; what somebody else put together must not keep us busy.
MAX_COMMANDS = 64


@dataclass(frozen=True, slots=True)
class Said:
    """One question: the pictures stand at ``places`` in the text."""

    text: str
    images: tuple[Image.Image, ...] = ()
    places: tuple[int, ...] = ()


def follow_up(
    id: str,
    question: Said,
    earlier: Sequence[tuple[Said, str]],
    look: Look,
    *,
    earlier_look: Look | None,
    max_earlier_crops: int,
) -> Asked:
    """The question with what was said before it: questions, each with its reply.

    Crops of earlier replies are cut by the rules of ``earlier_look``, and not at all without it; over
    ``max_earlier_crops`` the newest are kept. Raises RegionError for a picture that cannot be used.
    """
    images = [image for said, _ in earlier for image in said.images]
    asked = Asked.about(id, question.text, [*images, *question.images], look)
    pictures = iter(asked.prompt.pictures)
    exchanges, num_images = [], 0
    for said, reply in earlier:
        num_images += len(said.images)
        known = replace(asked, images=asked.images[:num_images], views=asked.views[:num_images])
        shown = Prompt(said.text, tuple(islice(pictures, len(said.images))), places=said.places)
        spans = (SampledSpan(reply),) if earlier_look is None else retell(known, reply, earlier_look)
        exchanges.append(Exchange(shown, spans))
    prompt = replace(
        asked.prompt,
        pictures=tuple(pictures),
        places=question.places,
        earlier=_with_newest_crops(exchanges, max_earlier_crops),
    )
    return replace(asked, prompt=prompt)


def retell(asked: Asked, reply: str, look: Look) -> tuple[Span, ...]:
    """A reply with the crops and refusals that the loop gave while it was written; after ``MAX_COMMANDS``
    commands it is only text.
    """
    limits = {"max_sampled_tokens": AS_MANY_AS_FIT, "max_turns": MAX_COMMANDS}
    episode = Episode(asked, 0, look=look.model_copy(update=limits))
    after: list[Span] = []
    for text in split_at_commands(reply):
        if episode.stop is None:
            finish: Finish = "stop" if text.endswith(STOPS) else "end"
            episode.receive(Piece(episode.id, SampledSpan(text), finish))
        else:
            after.append(SampledSpan(text))
    return (*episode.spans, *after)


def _with_newest_crops(exchanges: Sequence[Exchange], max_crops: int) -> tuple[Exchange, ...]:
    num_over = sum(len(exchange.crops) for exchange in exchanges) - max_crops
    kept: list[Exchange] = []
    for exchange in exchanges:
        reply: list[Span] = []
        for span in exchange.reply:
            if isinstance(span, CropSpan) and num_over > 0:
                num_over -= 1
            else:
                reply.append(span)
        kept.append(replace(exchange, reply=tuple(reply)))
    return tuple(kept)
