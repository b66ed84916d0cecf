"""The learning rate of supervised fine-tuning: linear warm-up, then cosine."""

import math

from models.config import SFTConfig


def learning_rate(share: float, config: SFTConfig) -> float:
    """The rate when ``share`` (0 to 1) of the run is over; the run is steps, or seconds when it has
    ``max_seconds``."""
    if share < config.warmup_ratio:
        return config.learning_rate * share / config.warmup_ratio
    left = (1.0 - min(share, 1.0)) / max(1.0 - config.warmup_ratio, 1e-12)
    cosine = 0.5 * (1.0 - math.cos(math.pi * left))
    return config.learning_rate * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine)
