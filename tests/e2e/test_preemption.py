"""An emergency takes the slot of long work, the leader is killed meanwhile, and the long work goes on."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from agent_client import Agent, Client, Task
from tests.harness.processes import ProcessCluster

pytestmark = pytest.mark.timeout(240)

PATIENCE_S = 90.0
SETTINGS = {"scheduler": {"suspend_grace_ms": 60_000}}


async def test_suspended_work_goes_on_from_its_savepoint_when_the_leader_dies(
    tmp_path: Path,
) -> None:
    begun, saving, saved = asyncio.Event(), asyncio.Event(), asyncio.Event()
    burning, quenched = asyncio.Event(), asyncio.Event()
    tries: list[tuple[int, Any]] = []
    async with ProcessCluster(tmp_path / "plane", SETTINGS) as cluster:
        leader, epoch = await cluster.coordinator()
        cluster.issue_agent("worker")
        agent = Agent("worker", home=cluster.home, slots=1)

        @agent.handler("survey")
        async def survey(task: Task) -> Any:
            tries.append((task.token.number, task.resumed_from))
            if task.resumed_from is not None:
                return {"houses": task.resumed_from["houses"] + 1}

            async def save() -> dict[str, int]:
                saving.set()
                await saved.wait()
                return {"houses": 41}

            task.on_suspend(save)
            begun.set()
            await asyncio.Event().wait()
            return None

        @agent.handler("fire")
        async def fire(_: Task) -> str:
            burning.set()
            await quenched.wait()
            return "out"

        async with agent, Client(home=cluster.home) as client, asyncio.timeout(2 * PATIENCE_S):
            low = await client.submit({"priority": "LOW", "tasks": {"survey": {"required_skills": "survey"}}})
            await begun.wait()
            urgent = await client.submit(
                {"priority": "EMERGENCY", "tasks": {"fire": {"required_skills": "fire"}}}
            )
            # The slot is used while the survey saves; then nobody leads for a while.
            await burning.wait()
            await saving.wait()
            cluster.signal(leader, signal.SIGKILL)
            saved.set()
            await cluster.coordinator(newer_than=epoch)
            quenched.set()
            assert (await urgent.result(PATIENCE_S)).outputs == {"fire": "out"}
            assert (await low.result(PATIENCE_S)).outputs == {"survey": {"houses": 42}}
            info = await low.info()
            attempts = info.message.tasks[0].attempts
    assert tries == [(1, None), (2, {"houses": 41})]
    assert [attempt.token.number for attempt in attempts] == [1, 2]
