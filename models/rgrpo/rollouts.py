"""Every step's rollouts on disk: ``rollouts/step-N.parquet``, a transcript per row with its advantage."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from models import distributed
from models.records import write_rows
from models.rgrpo.batch import Rollout
from models.transcripts import TRANSCRIPT_FIELDS, TRANSCRIPT_VERSION, Transcript, transcript_row

ROLLOUT_SCHEMA = pa.schema(
    [
        *TRANSCRIPT_FIELDS,
        ("step", pa.int32()),
        ("kind", pa.string()),
        ("advantage", pa.float64()),
        ("is_trained", pa.bool_()),
    ]
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout], *, step: int) -> None:
    """Write the rollouts of all ranks to one file; all ranks call it.

    The sampled mask is in the spans: tokens of kind ``sampled`` carry loss, ``text`` and ``crop`` do not.
    """
    rows = [_row(rollout, step) for rollout in rollouts]
    everywhere = [row for share in distributed.from_all_ranks(rows) for row in share]
    if distributed.is_main():
        write_rows(path, ROLLOUT_SCHEMA, everywhere, version=TRANSCRIPT_VERSION)


def _row(rollout: Rollout, step: int) -> dict[str, object]:
    return {
        **transcript_row(Transcript.of(rollout.trajectory)),
        "step": step,
        "kind": rollout.kind,
        "advantage": rollout.advantage,
        "is_trained": rollout.is_trained,
    }
