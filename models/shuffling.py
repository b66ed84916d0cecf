"""Which samples come next: a function of seed and position, so that a resumed run needs no sampler state."""

import numpy as np


def endless_shuffle(num_items: int, *, start: int, count: int, seed: int) -> list[int]:
    """Positions ``start`` to ``start + count`` of an endless stream of epochs over ``num_items`` items.

    Each epoch holds every item once, in an order of its own.
    """
    found: list[int] = []
    for position in range(start, start + count):
        epoch, place = divmod(position, num_items)
        if not found or place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(num_items)
        found.append(int(order[place]))
    return found


def start_of_batch(step: int, *, num_items: int, size: int) -> int:
    """The position in the stream at which batch ``step`` starts when no batch holds an item twice.

    What is left of an epoch after its last whole batch is skipped; other items are, in the next one. ``size``
    is at most ``num_items``.
    """
    epoch, place = divmod(step, num_items // size)
    return epoch * num_items + place * size
