"""Whether a plane is still whole after what was done to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psutil

from agent_client import Agent, Client, Task
from tests.e2e.raw_calls import PATIENCE_S, REPLICAS
from tests.harness.launched import Launched

Eventually = Callable[..., Awaitable[None]]
# How much a process may grow while it refuses: caches and code that was never run before, no leak.
GROWTH_BYTES_MAX = 24 * 1024**2
GROWTH_FILES_MAX = 8
# (Replica, process id) -> (open files, resident bytes). A replica that crashed has another id.
Usage = Mapping[tuple[str, int], tuple[int, int]]


def usage(plane: Launched) -> Usage:
    """Return what each service's process uses now."""
    found = {}
    for name in REPLICAS:
        process = psutil.Process(pid := plane.pids()[name])
        found[name, pid] = (process.num_fds(), process.memory_info().rss)
    return found


def grown(plane: Launched, before: Usage) -> list[str]:
    """Return which processes are not those of before, or use far more."""
    now = usage(plane)
    return [
        f"{one}: {was} was, {now.get(one)} is"
        for one, was in before.items()
        if one not in now
        or now[one][0] > was[0] + GROWTH_FILES_MAX
        or now[one][1] > was[1] + GROWTH_BYTES_MAX
    ]


def task(task_id: str, *dependencies: str, skill: str = "work", **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "required_skills": [skill],
        "dependencies": list(dependencies),
        "estimated_duration": 0.1,
        **more,
    }


async def assert_whole(plane: Launched, before: Usage, eventually: Eventually) -> None:
    """The plane does its work, no service has grown, and none has met a defect of its own."""
    plane.tls("agent/honest")
    agent = Agent("honest", home=plane.home)

    @agent.handler("work")
    def work(given: Task) -> list[str]:
        return [*sorted(given.inputs), given.id]

    async with agent, Client(home=plane.home) as client:
        await asyncio.wait_for(agent.wait_ready(), PATIENCE_S)
        collaboration = await client.submit(
            {"tasks": [task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c")]}
        )
        assert (await collaboration.result(PATIENCE_S)).outputs == {"d": ["b", "c", "d"]}
        assert (await agent.send("honest", "still here")).sequence_number >= 1

    def flat() -> object:
        return not grown(plane, before)

    # What was just closed may take a moment; what then is still there is said by name.
    with contextlib.suppress(AssertionError):
        await eventually(flat)
    assert grown(plane, before) == []
    for replica in REPLICAS:
        log = (plane.home / "logs" / f"{replica}.log").read_text(encoding="utf-8")
        assert "failed unexpectedly" not in log, replica
        assert "Traceback" not in log, replica
