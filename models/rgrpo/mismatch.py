"""Engine against trainer on the same tokens, with the same weights: how far their log-probs are apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models import distributed
from models.config import RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.rgrpo.update import score_again


@dataclass(frozen=True, slots=True)
class Mismatch:
    """``kl`` is KL(engine || trainer), k3, nats per token (NaN without tokens); ``largest`` the largest
    difference of one token's log-probs, nats. Over all ranks."""

    kl: float
    largest: float
    num_tokens: int


def measure_mismatch(
    engine: DeepSpeedEngine, encoded: Sequence[Encoded], config: RGRPOConfig, *, spare: Encoded
) -> Mismatch:
    """Score this rank's sequences, all with sampled tokens, by the policy as it is; all ranks call it.

    ``spare`` is any sequence of this rank.
    """
    scored = score_again(engine, encoded, config, spare=spare)
    gaps = [again - one.engine_logprobs[one.sampled] for one, again in zip(encoded, scored, strict=True)]
    sums = [sum(float(np.sum(np.expm1(gap) - gap)) for gap in gaps), sum(map(len, gaps))]
    kl, num_tokens = distributed.global_sums(sums)
    largest = distributed.global_max(max((float(np.abs(gap).max()) for gap in gaps), default=0.0))
    return Mismatch(kl / num_tokens if num_tokens else float("nan"), largest, int(num_tokens))
