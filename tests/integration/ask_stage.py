"""A flow that has a deployment do the stage sft, as the pipeline does, and prints where the model is."""

import asyncio
import sys

from prefect import flow

from flows.sft import sft
from tasks.deployed import stage_at


@flow(name="asks-a-stage")
async def ask(seconds: float, overrides: list[str]) -> str:
    trained = await stage_at("tiny", sft)("tiny-smoke", overrides, max_seconds=seconds)
    return trained.artifacts["model"].uri


if __name__ == "__main__":
    print(asyncio.run(ask(float(sys.argv[1]), sys.argv[2:])))
