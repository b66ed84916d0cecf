"""Boxes that miss on purpose (paper 4.5.1, Figure 4): what is the accuracy of grounding worth?

The paper says only that boxes were "randomly replacing or perturbing". Here a replaced box has the size of
the asked one and does not overlap it; a perturbed one is moved and scaled until its IoU with the asked one
is below 0.5, the usual threshold of grounding accuracy, but still touches it.

Which boxes miss is drawn per box, from a stream of its own: the n-th box of an attempt misses at a kept share
of 0.6 whenever it misses at 0.7, whatever was drawn for the boxes before it.
"""

import math

import numpy as np

from models.config import BoxCorruption
from models.region import Box, Size, View

# A given box is where it was asked when their IoU is at least this.
SAME_PLACE_IOU = 0.5
# A perturbed box moves by up to this many of its own sides, and grows or shrinks by up to this factor.
_MAX_SHIFT, _MAX_FACTOR = 1.0, 2.0


def box_to_cut(box: Box, view: View, corruption: BoxCorruption | None, rng: np.random.Generator) -> Box:
    """Where the crop of an asked box is cut, in pixels of the same space.

    ``rng`` is the attempt's; the n-th call on it decides about the attempt's n-th box.
    """
    if corruption is None:
        return box
    (own,) = rng.spawn(1)
    if own.random() < corruption.kept_share:
        return box
    size = view.size(box.space)
    return replaced(box, size, own) if corruption.way == "replace" else perturbed(box, size, own)


def replaced(box: Box, size: Size, rng: np.random.Generator) -> Box:
    """A box of the same size at a uniformly random place of the picture that does not overlap ``box``.

    A box that leaves no such place, because it is too large, is perturbed instead.
    """
    places = _disjoint_places(box, size)
    if not places:
        return perturbed(box, size, rng)
    # A place may be a line or a point: it has no area, but it is better than none.
    areas = np.array([(x_high - x_low) * (y_high - y_low) for x_low, x_high, y_low, y_high in places])
    areas = areas if areas.sum() > 0 else np.ones(len(places))
    x_low, x_high, y_low, y_high = places[rng.choice(len(places), p=areas / areas.sum())]
    x, y = float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high))
    return Box(x, y, x + box.width, y + box.height, box.space)


def perturbed(box: Box, size: Size, rng: np.random.Generator) -> Box:
    """The box moved and scaled at random, inside the picture, with an IoU above 0 and below 0.5."""
    while True:
        factor = math.exp(rng.uniform(-1, 1) * math.log(_MAX_FACTOR))
        width, height = min(box.width * factor, size.width), min(box.height * factor, size.height)
        x = (box.x1 + box.x2 - width) / 2 + rng.uniform(-_MAX_SHIFT, _MAX_SHIFT) * box.width
        y = (box.y1 + box.y2 - height) / 2 + rng.uniform(-_MAX_SHIFT, _MAX_SHIFT) * box.height
        x, y = min(max(x, 0.0), size.width - width), min(max(y, 0.0), size.height - height)
        moved = Box(x, y, x + width, y + height, box.space)
        # Ends: any factor below 0.7 gives an IoU below 0.5, and any small enough shift one above 0.
        if 0 < moved.iou(box) < SAME_PLACE_IOU:
            return moved


def _disjoint_places(box: Box, size: Size) -> list[tuple[float, float, float, float]]:
    """Where the first corner of a box of this size may lie so that it does not overlap ``box``.

    Rectangles (x from, x to, y from, y to) without common area, whose union is all such places.
    """
    right, bottom = size.width - box.width, size.height - box.height  # the last places in the picture
    between = max(0.0, box.x1 - box.width), min(right, box.x2)
    places = [
        (0.0, box.x1 - box.width, 0.0, bottom),
        (box.x2, right, 0.0, bottom),
        (*between, 0.0, box.y1 - box.height),
        (*between, box.y2, bottom),
    ]
    return [place for place in places if place[0] <= place[1] and place[2] <= place[3]]
