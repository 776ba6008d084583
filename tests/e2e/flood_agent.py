"""One of the flood's agents, which writes down what it starts and ends, and can be held in a task.

    python -m tests.e2e.flood_agent NAME RECORD [HELD_TASK GATE]

RECORD gets one line `started|ended TASK PID` per handler call. A handler of HELD_TASK computes, then waits
until the file GATE exists before it returns: so a test decides what happens in the middle of a task.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agent_client
from agent_client import Agent, Task

NAME, RECORD, *HOLD = sys.argv[1:]


def note(what: str, task: Task) -> None:
    # O_APPEND: lines of several processes do not mix.
    descriptor = os.open(RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{what} {task.id} {os.getpid()}\n".encode())
    os.close(descriptor)


def hold(task: Task) -> None:
    if HOLD and task.id == HOLD[0]:
        while not Path(HOLD[1]).exists():
            if task.wait_cancelled(0.02):
                task.check_cancelled()


class RecordingAgent(Agent):
    def handler(self, *task_types: str) -> Callable[[Any], Any]:
        register = super().handler(*task_types)

        def wrap(function: Callable[[Task], Any]) -> Callable[[Task], Any]:
            @functools.wraps(function)
            async def recorded(task: Task) -> Any:
                note("started", task)
                result = await function(task)
                # On purpose in the loop: an agent whose loop is blocked must not be taken for lost.
                hold(task)
                note("ended", task)
                return result

            @functools.wraps(function)
            def recorded_plain(task: Task) -> Any:
                note("started", task)
                result = function(task)
                hold(task)
                note("ended", task)
                return result

            register(recorded if inspect.iscoroutinefunction(function) else recorded_plain)
            return function

        return wrap


def main() -> int:
    agent_client.Agent = RecordingAgent  # type: ignore[misc]  # before the example takes the name
    from examples.flood_response.agents import TEAM  # noqa: PLC0415

    return TEAM[NAME].run()


if __name__ == "__main__":
    sys.exit(main())
