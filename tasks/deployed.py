"""A stage's flow where its deployment says: on that deployment's work pool, in another process or machine.

A run of a deployment leaves what it returned as an artifact of the run in Prefect (:func:`hand_over`); the
run that asked for it reads it there. Only references cross: the artifacts themselves are in the store.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast, get_type_hints
from uuid import UUID, uuid4

import httpx
from prefect import Flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from pydantic import BaseModel, TypeAdapter

from models.errors import ConfigError, LaunchError

_KEY = "stage-output"
_POLL_SECONDS = 2.0
# How long a server may be away before who waits for a stage gives up.
_PATIENCE_SECONDS = 600.0

logger = logging.getLogger(__name__)

T = TypeVar("T")
OutputT = TypeVar("OutputT", bound=BaseModel)
StageFlow = Callable[..., Coroutine[Any, Any, Any]]


def stage_at(stages: str, flow: StageFlow) -> StageFlow:
    """The flow itself when ``stages`` is empty, else a call of its deployment of that name.

    Both take the same arguments, after preset and overrides by name, and give the same result.
    """
    if not stages:
        return flow
    deployed = cast("Flow[..., Any]", flow)

    async def call(preset: str, overrides: list[str] | None, **inputs: Any) -> Any:
        parameters = {"preset": preset, "overrides": overrides, **inputs}
        return await _run(deployed, f"{deployed.name}/{stages}", parameters)

    return call


async def hand_over(output: OutputT) -> OutputT:
    """Leave a stage's output where :func:`stage_at` finds it, in the run of a deployment; gives it back."""
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.deployment_id:
        kept = Artifact(
            type="json", key=_KEY, data=output.model_dump(mode="json"), description="What the run made"
        )
        await _patiently(lambda: cast("Coroutine[Any, Any, Any]", kept.acreate()))
    return output


async def _run(flow: "Flow[..., Any]", name: str, parameters: dict[str, Any]) -> Any:
    plain = {key: _plain(value) for key, value in parameters.items()}
    once = str(uuid4())  # asked twice, because the first answer was lost, it is still one run
    async with get_client() as client:
        try:
            run = await _patiently(
                lambda: arun_deployment(
                    name, client=client, parameters=plain, timeout=0, idempotency_key=once
                )
            )
        except ObjectNotFound as error:
            raise ConfigError(
                f"There is no deployment {name!r}. Deploy it (vlm-r3 deploy), or leave stages empty to run "
                "in this process."
            ) from error
        try:
            run = await _ended(client, run.id)
        except BaseException:
            _cancel(run.id)
            raise
        if run.state is None or not run.state.is_completed():
            found = f"{run.state.name}: {run.state.message}" if run.state else "no state"
            raise LaunchError(f"The run {run.name!r} of {name} ended as {found}. See its log in Prefect.")
        left = await _output(client, run, name)
    return TypeAdapter(get_type_hints(flow.fn)["return"]).validate_json(left)


async def _ended(client: PrefectClient, run_id: UUID) -> FlowRun:
    while True:
        run = await _patiently(lambda: client.read_flow_run(run_id))
        if run.state and run.state.is_final():
            return run
        await asyncio.sleep(_POLL_SECONDS)


async def _output(client: PrefectClient, run: FlowRun, name: str) -> str:
    found = await _patiently(
        lambda: client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=[_KEY])
            ),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    )
    if not found:
        raise LaunchError(f"The run {run.name!r} of {name} ended well and left no {_KEY}. Is its code older?")
    return str(found[0].data)  # JSON, as every artifact of this kind


async def _patiently(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What Prefect's server answers, also when it restarts meanwhile: the stages go on without it."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except httpx.TransportError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"Prefect's server has not answered for {_PATIENCE_SECONDS:.0f} s ({error!r}), so this "
                    "run ends. Start the server and the run again: finished stages are taken from the cache."
                ) from error
            logger.warning("Prefect's server does not answer (%r). Waiting for it.", error)
        await asyncio.sleep(_POLL_SECONDS)


def _cancel(run_id: UUID) -> None:
    """End a run that nobody waits for any more. Blocking: the loop may be going down around us."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
        if state is None or not state.is_final():
            client.set_flow_run_state(run_id, Cancelling(message="The run that asked for it ended."))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
