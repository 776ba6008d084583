"""An agent against stand-in services over real sockets: assignments, results, reconnects, fences, drain."""

from __future__ import annotations

import json
from typing import Any

from agent_client import Agent, Task
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane


def value(result: Any) -> Any:
    return json.loads(result.result.data)


async def test_a_result_reaches_the_scheduler(plane: FakePlane, eventually: Eventually) -> None:
    agent = Agent("field-1", home=plane.home)

    @agent.handler("plan")
    async def plan(task: Task) -> dict[str, Any]:
        await task.progress(0.5, "half")
        return {"id": task.id, "attempt": task.token.number}

    async with agent:
        await agent.wait_ready()
        plane.assign("a")
        await eventually(lambda: plane.results)
    assert value(plane.results[0]) == {"id": "a", "attempt": 1}
