"""`vlm-r3 services`: a team server without containers, and new passwords for one in containers."""

import argparse

from tasks.settings import HOME, prepare
from tasks.team_config import compose_secrets, env_text, services_folder


def services(options: argparse.Namespace) -> int:
    """Start, end or look at the services; 1 when they are not all well."""
    if options.action == "env":
        print(env_text(compose_secrets()), end="")
        return 0
    from tasks import team_keeper

    settings = prepare(options.work_dir)
    if options.action == "down":
        print("The services have ended." if team_keeper.down(settings) else "No services are running.")
        return 0
    if options.action == "up":
        team_keeper.up(settings, HOME)
    found = team_keeper.status(settings, HOME)
    for each in found:
        state = "ok " if each.is_healthy else "BAD"
        again = f", started {each.starts} times" if each.starts > 1 else ""
        print(f"{state}  {each.name:9} {each.url}  (process {each.pid}{again})")
    if not found:
        print("No services are running. Start them: vlm-r3 services up")
        return 1
    print(f"To use them: set -a; . {services_folder(settings) / 'env'}; set +a")
    return 0 if all(each.is_healthy for each in found) else 1
