"""An agent that says what it starts: `python -m benchmarks.failover_agent NAME SECONDS_OF_ONE_TASK`."""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from agent_client import Agent, Task
from benchmarks.programs import tell


async def work(name: str, seconds: float) -> None:
    """Take part until the process is ended."""
    agent = Agent(name, slots=1)

    @agent.handler("work")
    async def do(task: Task) -> str:
        tell("started", at_ns=time.monotonic_ns(), epoch=task.token.epoch, task=task.id)
        await asyncio.sleep(seconds)
        return name

    async with agent:
        await agent.wait_ready()
        tell("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], float(sys.argv[2])))
