"""The example of topics and skills."""

from __future__ import annotations

from agent_client.testing import InMemoryPlane
from examples import lookout
from tests.conftest import Eventually


async def test_what_is_published_is_heard_and_asked_for(eventually: Eventually) -> None:
    async with InMemoryPlane() as plane:
        plane.add(lookout.dispatcher, lookout.lookout)
        assert set(await lookout.look()) <= {"r7", "r8"}
        await eventually(lambda: lookout.closed == ["r8"])
        assert [envelope.address for envelope in plane.messages[:3]] == [
            "topic/roads.closed",
            "topic/roads.closed",
            "topic/roads.open",
        ]
