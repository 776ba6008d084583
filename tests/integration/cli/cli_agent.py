"""`python -m tests.integration.cli.cli_agent NAME GATE`: an agent for the command's tests.

It greets, holds a task until the file GATE exists, stumbles at its first try, and answers messages.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from agent_client import Agent, Delivery, Task, TransientFailure

NAME, GATE = sys.argv[1:]
agent = Agent(NAME)


@agent.handler("greet")
def greet(task: Task) -> dict[str, str]:
    return {"greeting": f"Hello, {task.payload['name']}!"}


@agent.handler("hold")
async def hold(task: Task) -> str:
    await task.progress(0.5, "waiting at the gate")
    while not Path(GATE).exists():
        await asyncio.sleep(0.02)  # sleeps: another process's file sets no event
    return "the gate is open"


@agent.handler("stumble")
def stumble(task: Task) -> str:
    if task.attempt.token.number == 1:
        raise TransientFailure("the road was wet", reason="WET_ROAD")
    return "arrived"


@agent.on_message()
async def answer(delivery: Delivery) -> Any:
    return {"you said": delivery.payload}


if __name__ == "__main__":
    sys.exit(agent.run())
