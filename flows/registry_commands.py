"""The commands about who is champion: ``rollback`` and ``history``."""

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from flows.console import Start, conduct
from models.errors import GateError
from tasks.model_source import MODEL_NAME, has_registry
from tasks.preflight import check_tracker
from tasks.settings import prepare

if TYPE_CHECKING:
    from tasks.registry import Verdict


def rollback(options: argparse.Namespace) -> int:
    """Make a version champion that was champion before."""
    settings = prepare(options.work_dir)
    check_tracker(settings)

    def load() -> Start:
        from flows.rollback import rollback as flow

        return partial(flow, options.to, options.reason)

    verdict: Verdict = conduct(settings, ("prepare", "rollback"), load)
    if not verdict.is_champion:
        raise GateError(refusal(verdict.version, verdict.reasons))
    print(f"vlm-r3 version {verdict.version} is champion. " + " ".join(verdict.reasons))
    return 0


def history(options: argparse.Namespace) -> int:
    """Print every promotion, refusal and rollback, oldest first, and whether the aliases agree."""
    settings = prepare(options.work_dir)
    check_tracker(settings)
    if not has_registry(settings):
        print(f"{MODEL_NAME} has no versions yet. Run: vlm-r3 run", file=sys.stderr)
        return 0
    from models.history import line
    from tasks.promotions import records
    from tasks.versions import drift_line, read_registry, registry_client

    registry = read_registry(registry_client())
    for record in records(registry):
        if options.json:
            print(record.model_dump_json())
            continue
        print(line(record))
        for check in record.checks if options.checks else ():
            print(f"      {check}")
    for alias, (found, wanted) in registry.drift().items():
        print(f"vlm-r3: {drift_line(alias, found, wanted)}", file=sys.stderr)
    return 0


def refusal(version: str, reasons: tuple[str, ...]) -> str:
    """Why a version was not made champion, for people."""
    return f"Version {version} was not made champion.\n" + "\n".join(f"  {reason}" for reason in reasons)
