"""The flood's agents decide together in the in-memory plane, as a user would test agents of their own."""

from __future__ import annotations

import json
from pathlib import Path

from agent_client.testing import InMemoryPlane
from examples.flood_response.agents import TEAM
from examples.flood_response.collaboration import TASKS, collaboration

SCENARIO = Path(__file__).parents[2] / "examples" / "flood_response" / "scenario.json"


async def test_the_team_decides() -> None:
    scenario = json.loads(SCENARIO.read_text(encoding="utf-8"))
    scenario["ensemble_members"] = 60
    async with InMemoryPlane() as plane:
        for agent in TEAM.values():
            plane.add(agent)
        result = await plane.submit(collaboration(scenario))
    decision = result.outputs["decision"]
    assert decision["feasible"], decision["problems"]
    assert {contribution.task_id for contribution in result.contributions} == set(TASKS)
    assert {c.agent_id for c in result.contributions} == set(TEAM)
