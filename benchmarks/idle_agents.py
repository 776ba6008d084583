"""Agents that are ready and have nothing to do: `python -m benchmarks.idle_agents NAME...`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import uvloop

from agent_client import Agent
from benchmarks.programs import tell


async def wait(names: list[str]) -> None:
    """Be ready until the process is ended."""
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(Agent(name, ["idle"])) for name in names]
        for agent in agents:
            await agent.wait_ready()
        tell("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(wait(sys.argv[1:]))
