"""Needs, gangs and explanations on real processes: what fits runs, together where it must, and says why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent_client import Agent, Client, PreconditionError, Task
from tests.harness.processes import ProcessCluster

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 90.0


async def test_needs_gangs_and_explanations(tmp_path: Path) -> None:
    began: list[str] = []
    begun, released = asyncio.Event(), asyncio.Event()
    together = asyncio.Barrier(2)
    async with ProcessCluster(tmp_path / "plane") as cluster:
        await cluster.coordinator()
        labels = {"plain": {}, "strong": {"capacity.gpu": "1"}}
        for name in labels:
            cluster.issue_agent(name)
        agents = [Agent(name, home=cluster.home, slots=2, labels=labels[name]) for name in labels]
        for each in agents:

            @each.handler("render")
            async def render(task: Task, who: str = each.name) -> str:
                began.append(task.id)
                begun.set()
                await released.wait()
                return who

            @each.handler("lift")
            async def lift(task: Task, who: str = each.name) -> str:
                # Nobody comes through alone.
                await together.wait()
                return who

        async with agents[0], agents[1], Client(home=cluster.home) as client, asyncio.timeout(PATIENCE_S):
            for each in agents:
                await each.wait_ready()
            one = {"required_skills": "render", "needs": {"gpu": 1}}
            rendered = await client.submit({"tasks": {"r1": one, "r2": one, "r3": one}})
            await begun.wait()
            # The agent has another slot, and nothing left of what the next one needs.
            waits = next(name for name in ("r1", "r2", "r3") if name not in began)
            obstacles = [each.obstacle for each in (await client.explain(rendered.id, waits)).candidates]
            assert "gpu: 1 needed, 0 left" in obstacles
            assert len(began) == 1
            released.set()
            assert (await rendered.result()).outputs == dict.fromkeys(("r1", "r2", "r3"), "strong")

            lifted = await client.submit({"tasks": {"g": {"required_skills": "lift", "gang": {"size": 2}}}})
            outputs = (await lifted.result()).outputs
            assert sorted(outputs.values()) == ["plain", "strong"]

            why = await client.explain(rendered.id, "r1")
            assert why.chosen_because
            assert {fact.name for fact in why.priority} >= {"class", "arrival"}

            # What nobody can do waits for something that is named, or is refused if that is asked for.
            large = {"tasks": {"huge": {"required_skills": "render", "needs": {"gpu": 8}}}}
            huge = await client.submit(large)
            assert "8 gpu" in (await client.explain(huge.id, "huge")).waiting_for
            with pytest.raises(PreconditionError, match="8 gpu needed"):
                await client.submit({**large, "unknown_skill_policy": "FAIL"})
            crowd = {"tasks": {"g": {"required_skills": "lift", "gang": {"size": 3}}}}
            with pytest.raises(PreconditionError, match=r"a gang of 3 .* 2 such agents known"):
                await client.submit({**crowd, "unknown_skill_policy": "FAIL"})
            await huge.cancel()
