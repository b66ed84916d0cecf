"""The options of the commands for a team: ``services`` and ``deploy``."""

import argparse
from pathlib import Path
from typing import Any


def add_team_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add both to the parser's ``commands`` (what argparse's ``add_subparsers`` gives)."""
    services = commands.add_parser("services", help="a team server without containers: start it, end it")
    services.add_argument(
        "action", choices=("up", "down", "status", "env"), help="env prints new passwords for containers"
    )
    deploy = commands.add_parser("deploy", help="work pools, deployments, automations on a Prefect server")
    deploy.add_argument(
        "--gpu-pool", choices=("gpu", "gpu-k8s"), help="deploy the large presets too, on this pool (not)"
    )
    deploy.add_argument(
        "--home", type=Path, metavar="DIR", help="where the project lies on the workers (as here)"
    )
    deploy.add_argument(
        "--notify", default="", metavar="TYPE/NAME", help="a saved block of Prefect that takes messages"
    )
    return [services, deploy]
