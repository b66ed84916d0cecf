"""Rollouts ahead: with ``rgrpo.overlap`` those of a step are sampled while the step before it is trained.

The engine has the weights with which that step began, so the policy that trains on them is one update ahead
of the one that sampled. What follows from it:

* every sampled span says which version sampled it, and :func:`staleness` counts;
* the objective's ratio is taken against the log-probs of that version (:mod:`models.rgrpo.update`);
* the distance of the two policies is no mismatch of engine and trainer. Those are compared on the rollouts
  ahead, before the optimiser's step: both have the same weights then, and for the last time;
* rollouts ahead are part of a checkpoint, as the weights that sampled them are gone.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from models import distributed
from models.config import Look, RGRPOConfig
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded, Encoder
from models.errors import EncodingError
from models.records import Question, write_rows
from models.rgrpo.batch import encoded_or_why_not
from models.rgrpo.guards import require_agreement
from models.rgrpo.mismatch import measure_mismatch
from models.rgrpo.rollouts import rebuilt
from models.trajectory import SampledSpan, Trajectory
from models.transcripts import (
    TRANSCRIPT_SCHEMA,
    TRANSCRIPT_VERSION,
    Transcript,
    read_transcripts,
    transcript_row,
)

_FILE = "rollouts-ahead.parquet"
_COMPARED = 8  # trajectories per rank and step, each of another question


def staleness(trajectories: Sequence[Trajectory], *, step: int) -> dict[str, float]:
    """By how many updates the policy of a step is ahead of those that sampled its tokens, over the tokens of
    all ranks."""
    spans = [span for one in trajectories for span in one.spans if isinstance(span, SampledSpan)]
    behind = [(step - span.policy_version, len(span.token_ids or ())) for span in spans]
    total, num_tokens = distributed.global_sums(
        [sum(updates * count for updates, count in behind), sum(count for _, count in behind)]
    )
    return {
        "rgrpo/staleness_mean": total / max(num_tokens, 1.0),
        "rgrpo/staleness_max": distributed.global_max(max((updates for updates, _ in behind), default=0)),
    }


def compare_like_with_like(
    engine: DeepSpeedEngine,
    trajectories: Sequence[Trajectory],
    config: RGRPOConfig,
    *,
    encoder: Encoder,
    spare: Encoded,
) -> dict[str, float]:
    """Engine against trainer on some rollouts that the policy's present weights sampled; all ranks call it.

    Rollouts that are no sequence of this model are passed over: the step that scores them refuses them.
    Raises GuardError when the two are further apart than ``max_mismatch_kl``.
    """
    size = config.group_size
    groups = (trajectories[start : start + size] for start in range(0, len(trajectories), size))
    first_of_each = (next(_sequences(group, encoder), None) for group in groups)
    encoded = list(islice((one for one in first_of_each if one is not None), _COMPARED))
    found = measure_mismatch(engine, encoded, config, spare=spare)
    if not found.num_tokens:
        return {}
    require_agreement(found.kl, limit=config.max_mismatch_kl)
    return {"rgrpo/mismatch_kl": found.kl, "rgrpo/mismatch_max": found.largest}


def _sequences(group: Sequence[Trajectory], encoder: Encoder) -> Iterator[Encoded]:
    """Those of a question's rollouts that can be compared, in order."""
    for trajectory in group:
        if trajectory.can_be_compared:
            found = encoded_or_why_not(trajectory, encoder)
            if not isinstance(found, EncodingError):
                yield found


def write_ahead(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Keep the rollouts of all ranks, in the order of their questions; all ranks call it."""
    rows = [transcript_row(Transcript.of(one)) for one in trajectories]
    everywhere = [row for share in distributed.from_all_ranks(rows) for row in share]
    if distributed.is_main():
        write_rows(folder / _FILE, TRANSCRIPT_SCHEMA, everywhere, version=TRANSCRIPT_VERSION)


def read_ahead(folder: Path, questions: Sequence[Question], look: Look) -> list[Trajectory]:
    """The rollouts of this rank's ``questions``, however many ranks kept them.

    Raises RecordError when their pictures are no longer what was shown.
    """
    asked = {question.id: question for question in questions}
    return [
        rebuilt(one, asked[one.question_id], look)
        for one in read_transcripts(folder / _FILE)
        if one.question_id in asked
    ]
