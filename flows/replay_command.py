"""``vlm-r3 replay RUN STEP``: a step's rollouts scored again, to the first token that diverges."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console import display, say
from models.errors import GateError
from tasks import progress
from tasks.run_folders import find_run
from tasks.settings import prepare

if TYPE_CHECKING:
    from models.rgrpo.replay import Replay, ReplayedRollout

_NUM_SHOWN = 5


def replay(options: argparse.Namespace) -> int:
    """Replay and print. Raises GateError when a rollout diverges, or all of them do a little."""
    settings = prepare(options.work_dir)
    run = find_run(options.run, settings.runs)
    board = progress.Board(say, ("replay",))
    progress.use(board)
    with display(board), board.stage("replay"):
        from models.rgrpo.replay import replay as replay_step

        found = replay_step(
            run,
            options.step,
            tolerance=options.tolerance,
            on_update=lambda done, total: board.update(
                "replay", {"progress/done": done, "progress/total": total}
            ),
        )
    if options.json:
        print(found.model_dump_json(indent=2))
    else:
        print(_told(found, run.path))
    if found.diverging:
        raise GateError(
            f"{len(found.diverging)} of {len(found.rollouts)} rollouts of step {found.step} do not come out "
            "as they were kept."
        )
    if not found.agrees:
        raise GateError(
            f"Engine and policy disagree in step {found.step}: KL {found.mismatch_kl:.3g} nats per token, at "
            f"most {found.max_mismatch_kl:g} is allowed (rgrpo.max_mismatch_kl). No single token is "
            f"{found.tolerance:g} nats apart; a lower --tolerance shows where they begin to differ."
        )
    return 0


def _told(found: "Replay", run: Path) -> str:
    again = f", and {found.updates_again} updates made again" if found.updates_again else ""
    lines = [
        f"{run.name}, step {found.step}: {len(found.rollouts)} rollouts, {found.num_tokens} sampled tokens",
        f"policy     {found.started_from}{again}",
        f"engine     KL {found.mismatch_kl:.3g} nats per token, largest difference "
        f"{found.largest_difference:.3g} nats (tolerance {found.tolerance:g})",
    ]
    if found.agrees:
        lines.append("every token, reward, advantage, picture and crop comes out as it was kept")
    for one in found.diverging[:_NUM_SHOWN]:
        lines += _about(one)
    if len(found.diverging) > _NUM_SHOWN:
        lines.append(f"and {len(found.diverging) - _NUM_SHOWN} more; --json lists them all")
    return "\n".join(lines)


def _about(one: "ReplayedRollout") -> list[str]:
    lines = [f"{one.question_id} #{one.sample_index}", *(f"  {fault}" for fault in one.faults)]
    if first := one.divergence:
        lines += [
            f"  diverges at sampled token {first.number} of {one.num_tokens}, turn {first.turn}: "
            f"{first.token!r} (id {first.token_id}) after {first.before!r}",
            f"  engine {first.engine:.6g}, policy {first.reference:.6g} nats",
        ]
    return lines
