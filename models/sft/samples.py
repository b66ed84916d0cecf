"""Rationale records ready for training: a rank's share, encoded; over-long ones dropped and counted."""

import logging
from dataclasses import dataclass
from pathlib import Path

from models import distributed
from models.config import Look, SFTConfig
from models.distributed import World
from models.encoding import Encoded, Encoder
from models.errors import TrainingError
from models.records import read_records
from models.shuffling import endless_shuffle

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Samples:
    """This rank's samples. ``num_total`` and ``num_dropped`` count those of all ranks, kept and dropped."""

    ids: tuple[str, ...]
    encoded: tuple[Encoded, ...]
    num_total: int
    num_dropped: int

    def batch(self, step: int, *, size: int, seed: int) -> list[int]:
        """Positions of this rank's ``size`` samples of a step; every epoch has an order of its own."""
        return endless_shuffle(len(self.encoded), start=step * size, count=size, seed=seed)


def load_samples(path: Path, *, encoder: Encoder, look: Look, config: SFTConfig, world: World) -> Samples:
    """The records of a file or folder that belong to this rank: every ``world.size``-th.

    Raises TrainingError when more than ``config.max_dropped`` of all records are too long, or a rank has
    none.
    """
    records = read_records(path)
    kept: list[tuple[str, Encoded]] = []
    dropped: list[str] = []
    for record in records[world.rank :: world.size]:
        encoded = encoder.encode_record(record, look)
        if len(encoded) <= config.max_tokens:
            kept.append((record.question.id, encoded))
        else:
            dropped.append(f"{record.question.id} ({len(encoded)} tokens)")
    if dropped:
        log.warning("longer than max_tokens %d, left out: %s", config.max_tokens, ", ".join(dropped))
    dropped_everywhere, empty_ranks = distributed.global_sums([len(dropped), not kept])
    if dropped_everywhere > config.max_dropped * len(records):
        raise TrainingError(
            f"{dropped_everywhere:.0f} of {len(records)} records in {path} are longer than sft.max_tokens "
            f"{config.max_tokens}; at most a share of {config.max_dropped} may be dropped. Raise max_tokens, "
            "or max_dropped if the loss is meant."
        )
    if empty_ranks:
        raise TrainingError(
            f"{path} holds {len(records)} usable records for {world.size} ranks: each needs at least one."
        )
    ids, samples = zip(*kept, strict=True)
    num_total = len(records) - int(dropped_everywhere)
    return Samples(ids, samples, num_total=num_total, num_dropped=int(dropped_everywhere))
