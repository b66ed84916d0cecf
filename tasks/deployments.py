"""Work pools, deployments and automations on a Prefect server, as infra/ and prefect.yaml declare them.

Everything may be done again: what is there is brought up to date.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from models.errors import ConfigError
from tasks import launch
from tasks.settings import HOME, Settings, child_environment

INFRA = HOME / "infra"
_NOTIFY = "$NOTIFY"
Say = Callable[[str], None]


async def make_pools(say: Say) -> None:
    """The work pools of infra/work_pools/, made or brought up to date."""
    folder = INFRA / "work_pools"
    async with get_client() as client:
        for declared in yaml.safe_load((folder / "pools.yaml").read_text())["pools"]:
            template = json.loads((folder / f"{declared['name']}.json").read_text())
            pool = WorkPoolCreate(**declared, base_job_template=template)
            await client.create_work_pool(pool, overwrite=True)
            say(f"work pool    {pool.name}")


def deploy_files(settings: Settings, *, home: Path, gpu_pool: str, say: Say) -> None:
    """The deployments of prefect.yaml, and with a pool for GPUs those of infra/deployments/gpu.yaml.

    ``home`` is where the project lies on the workers. Raises LaunchError when Prefect refuses one.
    """
    _deploy(settings, HOME / "prefect.yaml", {"VLM_R3_HOME": str(home)}, say)
    if gpu_pool:
        values = {"VLM_R3_HOME": str(home), "VLM_R3_GPU_POOL": gpu_pool}
        _deploy(settings, INFRA / "deployments" / "gpu.yaml", values, say)


async def make_automations(say: Say, *, notify: str = "") -> None:
    """The automations of infra/automations.yaml; ``notify`` (TYPE/NAME) is a saved block for messages."""
    declared = yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"]
    async with get_client() as client:
        for one in declared:
            try:
                actions = [await _action(client, action, notify) for action in one["actions"]]
            except _Missing as missing:
                say(f"automation   {one['name']}: left out, {missing}")
                continue
            automation = AutomationCore(**{**one, "actions": actions})
            found = await client.read_automations_by_name(one["name"])
            if found:
                await client.update_automation(found[0].id, automation)
            else:
                await client.create_automation(automation)
            say(f"automation   {one['name']}")


class _Missing(Exception):
    """What an automation needs and the server does not have."""


async def _action(client: PrefectClient, declared: Mapping[str, Any], notify: str) -> dict[str, Any]:
    """An action with the ids of what it names."""
    action = dict(declared)
    if name := action.pop("deployment", ""):
        try:
            action["deployment_id"] = (await client.read_deployment_by_name(name)).id
        except ObjectNotFound as error:
            raise _Missing(f"there is no deployment {name}") from error
    if name := action.pop("block", ""):
        action["block_document_id"] = await _block(client, notify if name == _NOTIFY else name)
    return action


async def _block(client: PrefectClient, name: str) -> Any:
    if not name:
        raise _Missing("no block takes its messages (--notify TYPE/NAME)")
    kind, separator, own = name.partition("/")
    if not separator:
        raise ConfigError(f"{name!r} is no block. Name it TYPE/NAME, for example slack-webhook/team.")
    try:
        return (await client.read_block_document_by_name(own, kind, include_secrets=False)).id
    except ObjectNotFound as error:
        raise ConfigError(f"There is no block {name!r} on the server. Save it in Prefect first.") from error


def _deploy(settings: Settings, file: Path, values: Mapping[str, str], say: Say) -> None:
    log = settings.work_dir / "deploy.log"
    environment = {**child_environment(num_threads=1, bin_folder=launch.BIN), **values}
    command = [str(launch.BIN / "prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    launch.run(command, log=log, environment=environment, folder=HOME)
    for declared in yaml.safe_load(file.read_text())["deployments"]:
        flow = declared["entrypoint"].rpartition(":")[2].replace("_", "-")
        say(f"deployment   {flow}/{declared['name']}")
