"""What ``vlm-r3 replay`` takes; apart from the command, which is too slow to import for --help."""

import argparse


def add_replay(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the command and return its parser."""
    purpose = "score the rollouts of a step of R-GRPO again, to the first token that diverges"
    command = commands.add_parser("replay", help=purpose, description=purpose)
    command.add_argument(
        "run", metavar="RUN", help="a run directory, or its label: rgrpo, of which the newest"
    )
    command.add_argument("step", type=int, metavar="STEP", help="which update the rollouts were for, from 0")
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="NATS",
        help="largest difference of a token's log-probs (by the engine's precision)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return command
