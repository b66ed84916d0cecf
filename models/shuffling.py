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
