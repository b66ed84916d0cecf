"""Shards: each rank measures its share of every variant's questions, and leaves a file that says so.

A shard is finished when its marker (``shards/<variant>-<rank>of<ranks>.json``) names the present model and
questions; a restart measures only what is missing. The first rank waits for the others' files and merges
them: there is no other communication, because a launcher ends all ranks when one fails.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.evaluation.predictions import Prediction, read_predictions, write_predictions
from models.evaluation.results import Frozen
from models.records import Question
from models.rundir import write_atomically

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work is this process's: every ``num_ranks``-th question, from ``rank`` on."""

    rank: int = 0
    num_ranks: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that merges and writes results."""
        return self.rank == 0

    def has(self, place: int) -> bool:
        """True for the place, from 0, of a question of this share."""
        return place % self.num_ranks == self.rank

    def of(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions of this share."""
        return questions[self.rank :: self.num_ranks]


ALONE = Share()


class Marker(Frozen):
    """What a shard was measured on, and how long it took."""

    model_digest: str
    questions_digest: str
    seconds: float

    def is_of(self, model_digest: str, questions_digest: str) -> bool:
        """True when the shard was measured on these."""
        return (self.model_digest, self.questions_digest) == (model_digest, questions_digest)


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of one variant, measured on one model and one list of questions."""

    folder: Path
    variant: str
    num_ranks: int
    model_digest: str
    questions_digest: str

    def is_finished(self, rank: int) -> bool:
        """True when that shard need not be measured again."""
        return self._marker(rank) is not None

    def finish(self, rank: int, predictions: Sequence[Prediction], *, seconds: float) -> None:
        """Write a measured shard; its marker comes last."""
        write_predictions(self._path(rank, ".parquet"), predictions)
        marker = Marker(
            model_digest=self.model_digest, questions_digest=self.questions_digest, seconds=seconds
        )
        write_atomically(self._path(rank, ".json"), marker.model_dump_json())

    def collect(self) -> tuple[list[Prediction], float]:
        """All shards' predictions in order of rank, and the seconds of the slowest; waits for other ranks."""
        predictions: list[Prediction] = []
        slowest = 0.0
        for rank in range(self.num_ranks):
            while (marker := self._marker(rank)) is None:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            predictions += read_predictions(self._path(rank, ".parquet"))
            slowest = max(slowest, marker.seconds)
        return predictions, slowest

    def forget(self) -> None:
        """Have all shards measured again by the next start, because we broke too many of their attempts."""
        for rank in range(self.num_ranks):
            self._path(rank, ".json").unlink(missing_ok=True)

    def _marker(self, rank: int) -> Marker | None:
        """The marker of a finished shard; None when there is none, or it belongs to something else."""
        try:
            marker = Marker.model_validate_json(self._path(rank, ".json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None
        return marker if marker.is_of(self.model_digest, self.questions_digest) else None

    def _path(self, rank: int, suffix: str) -> Path:
        return self.folder / f"{self.variant}-{rank}of{self.num_ranks}{suffix}"
