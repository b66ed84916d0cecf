"""The learning rate of a run: linear warm-up, then cosine."""

import math


def warmup_then_cosine(share: float, *, peak: float, warmup: float, min_ratio: float) -> float:
    """The rate when ``share`` (0 to 1) of the run is over.

    It rises from 0 for the share ``warmup``, then falls to ``min_ratio`` of the peak; 1 keeps it constant.
    """
    share = min(share, 1.0)
    if 0.0 < warmup >= share:
        return peak * share / warmup
    left = (1.0 - share) / max(1.0 - warmup, 1e-12)
    cosine = 0.5 * (1.0 - math.cos(math.pi * left))
    return peak * (min_ratio + (1.0 - min_ratio) * cosine)
