"""A whole plane in your test's process, without sockets, services or certificates.

from agent_client.testing import InMemoryPlane

async def test_plan():
    async with InMemoryPlane() as plane:
        plane.add(agent)
        result = await plane.submit({"tasks": [{"task_id": "a", "required_skills": ["plan"]}]})
        assert result["a"] == {"shelters": 3}
"""

from agent_client.testing.plane import InMemoryCollaboration, InMemoryPlane

__all__ = ["InMemoryCollaboration", "InMemoryPlane"]
