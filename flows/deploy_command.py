"""`vlm-r3 deploy`: what prefect.yaml and infra/ declare, on the configured Prefect server."""

import argparse
import asyncio

from models.errors import ConfigError
from tasks.settings import HOME, prepare


def deploy(options: argparse.Namespace) -> int:
    """Make work pools, deployments and automations, or bring them up to date."""
    settings = prepare(options.work_dir)
    if not settings.prefect_api_url:
        raise ConfigError(
            "PREFECT_API_URL is not set, so there is no server to deploy to. Name one, or start one: vlm-r3 "
            "services up."
        )
    from tasks.deployments import deploy_files, make_automations, make_pools

    asyncio.run(make_pools(print))
    deploy_files(settings, home=options.home or HOME, gpu_pool=options.gpu_pool or "", say=print)
    asyncio.run(make_automations(print, notify=options.notify))
    return 0
