"""Agents that take as long as drawn: `python -m benchmarks.paced_agents NAME=SPEED...`, until they are ended.

A task's payload says what it takes an agent of speed 1, in milliseconds.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import uvloop

from agent_client import Agent, Task
from benchmarks.programs import tell


async def work(speeds: dict[str, float]) -> None:
    """Do what comes, one task at a time for each agent."""
    async with AsyncExitStack() as stack:
        agents = []
        for name, speed in speeds.items():
            agent = Agent(name, slots=1)

            @agent.handler("work")
            async def last(task: Task, speed: float = speed) -> None:
                # The work itself.
                await asyncio.sleep(task.payload["ms"] / speed / 1_000)

            agents.append(await stack.enter_async_context(agent))
        for agent in agents:
            await agent.wait_ready()
        tell("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    named = (argument.partition("=") for argument in sys.argv[1:])
    uvloop.run(work({name: float(speed) for name, _, speed in named}))
