"""Shards: each rank measures its share of every variant's questions, and leaves a file that says so.

A shard is finished when its marker (``shards/<variant>-<rank>of<ranks>.json``) names the present model and
questions. Of a shard that is not, a restart asks only the questions that no rank has asked before it, however
many ranks there were (:mod:`models.evaluation.ledger`). The first rank waits for the others' files and merges
them: there is no other communication, because a launcher ends all ranks when one fails.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.evaluation.predictions import Prediction, read_predictions, write_predictions
from models.evaluation.results import Frozen
from models.rundir import write_atomically

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.2


class Marker(Frozen):
    """What a shard was measured on; how long the start that finished it took, and how much that sampled."""

    model_digest: str
    questions_digest: str
    seconds: float
    num_tokens: int

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

    @property
    def rows(self) -> Path:
        """Where the attempts of all starts lie, whatever shards they were made for."""
        identity = hashlib.sha256(f"{self.model_digest} {self.questions_digest}".encode()).hexdigest()
        return self.folder.with_name("rows") / f"{self.variant}-{identity[:16]}"

    def finish(
        self, rank: int, predictions: Sequence[Prediction], *, seconds: float, num_tokens: int
    ) -> None:
        """Write a measured shard; its marker comes last."""
        write_predictions(self._path(rank, ".parquet"), predictions)
        marker = Marker(
            model_digest=self.model_digest,
            questions_digest=self.questions_digest,
            seconds=seconds,
            num_tokens=num_tokens,
        )
        write_atomically(self._path(rank, ".json"), marker.model_dump_json())

    def collect(self) -> tuple[list[Prediction], float, int]:
        """All shards' predictions in order of rank, the seconds of the slowest, and the tokens sampled in
        them; waits for other ranks.
        """
        predictions: list[Prediction] = []
        slowest, num_tokens = 0.0, 0
        for rank in range(self.num_ranks):
            while (marker := self._marker(rank)) is None:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            predictions += read_predictions(self._path(rank, ".parquet"))
            slowest, num_tokens = max(slowest, marker.seconds), num_tokens + marker.num_tokens
        return predictions, slowest, num_tokens

    def forget(self) -> None:
        """Have the next start look at all shards again, because we broke too many of their attempts."""
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
