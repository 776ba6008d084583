"""Emergencies take the slots of long work, for one task or for a whole gang, and the long work goes on."""

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


async def test_an_urgent_gang_gets_its_agents_at_once_when_their_capacities_are_free(tmp_path: Path) -> None:
    """Both agents work, with all that they have: their slots are kept until both have saved."""
    begun = {name: asyncio.Event() for name in ("left", "right")}
    saved = {name: asyncio.Event() for name in begun}
    together = asyncio.Barrier(2)
    async with ProcessCluster(tmp_path / "plane", SETTINGS) as cluster:
        await cluster.coordinator()
        agents = []
        for name, event in begun.items():
            cluster.issue_agent(name)
            agent = Agent(name, home=cluster.home, slots=1, labels={"capacity.gpu": "1"})
            agents.append(agent)

            @agent.handler("survey")
            async def survey(task: Task, name: str = name, begun: asyncio.Event = event) -> Any:
                if task.resumed_from is not None:
                    return {"houses": task.resumed_from["houses"] + 1}

                async def save() -> dict[str, int]:
                    await saved[name].wait()
                    return {"houses": 41}

                task.on_suspend(save)
                begun.set()
                await asyncio.Event().wait()
                return None

            @agent.handler("lift")
            async def lift(_: Task, name: str = name) -> str:
                await together.wait()
                return name

        surveys = {
            name: {"required_skills": "survey", "required_agents": name, "needs": {"gpu": 1}}
            for name in begun
        }
        gang = {"required_skills": "lift", "gang": {"size": 2}, "needs": {"gpu": 1}}
        async with agents[0], agents[1], Client(home=cluster.home) as client, asyncio.timeout(2 * PATIENCE_S):
            low = await client.submit({"priority": "LOW", "tasks": surveys})
            for event in begun.values():
                await event.wait()
            urgent = await client.submit({"priority": "EMERGENCY", "tasks": {"lift": gang}})
            small = await client.submit({"priority": "LOW", "tasks": {"small": {"required_skills": "lift"}}})
            saved["left"].set()
            waiting = ""
            while not waiting.startswith("right to save"):
                waiting = (await client.explain(urgent.id, "lift")).waiting_for
            # The slot that is free already is not given to anybody else.
            assert (await client.explain(small.id, "small")).waiting_for
            await small.cancel()
            saved["right"].set()
            assert sorted((await urgent.result(PATIENCE_S)).outputs.values()) == ["left", "right"]
            assert (await low.result(PATIENCE_S)).outputs == {name: {"houses": 42} for name in begun}
