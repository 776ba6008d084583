"""Skills, teams and topics in the in-memory plane; requests and subscriptions over the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from muster.common.v1 import envelope_pb2

from agent_client import (
    AccessError,
    Agent,
    CallTimeoutError,
    Delivery,
    InvalidRequestError,
    NotFoundError,
    Receipt,
    Task,
)
from agent_client.testing import InMemoryPlane
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane


@pytest.fixture
def agent(plane: FakePlane) -> Agent:
    return Agent("field-1", ["plan"], home=plane.home)


# -- in memory


async def test_topics_reach_handlers_and_readers(eventually: Eventually) -> None:
    publisher, listener, reader = Agent("publisher", ["p"]), Agent("listener"), Agent("reader", ["r"])
    heard: list[Any] = []

    @listener.on_topic("roads.*", "bridges")
    async def note(delivery: Delivery) -> str:
        heard.append((delivery.topic, delivery.payload))
        return "what a topic's handler returns is nobody's reply"

    async with InMemoryPlane() as plane:
        plane.add(publisher, listener, reader)
        assert await listener.subscriptions() == ["bridges", "roads.*"]
        await reader.subscribe("**")
        assert await publisher.publish("roads.closed", {"road": 8}) == Receipt(0, "", 2)
        assert await publisher.publish("shelters", 1) == Receipt(0, "", 1)
        await eventually(lambda: heard == [("roads.closed", {"road": 8})])
        messages = reader.messages()
        first, second = [await anext(messages) for _ in range(2)]
        assert [first.topic, second.topic] == ["roads.closed", "shelters"]
        assert (first.address, first.envelope.receiver) == ("topic/roads.closed", "reader")
        first.ack()
        second.ack()
        await reader.unsubscribe("**")
        assert await publisher.publish("shelters", 2) == Receipt(0, "", 0)
        with pytest.raises(NotFoundError):
            await publisher.publish("shelters", 3, requires_receiver=True)
        with pytest.raises(InvalidRequestError):
            await reader.subscribe("a..b")
        assert plane.dead_letters == []


async def test_a_skill_is_the_least_loaded_agent_and_may_be_asked(eventually: Eventually) -> None:
    chief = Agent("chief", ["lead"])
    helpers = [Agent(name, ["roads"]) for name in ("helper-1", "helper-2")]
    for helper in helpers:

        @helper.on_message("collaboration_request")
        async def answer(delivery: Delivery, name: str = helper.name) -> str:
            return f"{name}: {delivery.payload}"

    async with InMemoryPlane() as plane:
        plane.add(chief, *helpers)
        assert await chief.request("skill/roads", "which way?") == "helper-1: which way?"
        with pytest.raises(NotFoundError):
            await chief.send("skill/none", 1)
        with pytest.raises(InvalidRequestError):
            chief.request("topic/roads", 1)
        # What waits counts as load.
        receipts = [await chief.send("skill/roads", number, type="heartbeat") for number in range(4)]
        assert {receipt.receiver for receipt in receipts} <= {"helper-1", "helper-2"}
        assert plane.messages[0].ttl == 30


async def test_a_team_hears_its_members(eventually: Eventually) -> None:
    first, second, stranger = Agent("first"), Agent("second"), Agent("stranger", ["x"])
    heard: list[Any] = []
    together = asyncio.Barrier(2)

    @second.on_message()
    async def note(delivery: Delivery) -> None:
        heard.append((delivery.sender, delivery.payload, delivery.collaboration_id))

    @first.handler("speak")
    async def speak(task: Task) -> int:
        await together.wait()
        return (await task.send(task.team, "to all of us")).receiver_count

    @second.handler("hear")
    async def hear(task: Task) -> None:
        await together.wait()

    async with InMemoryPlane() as plane:
        plane.add(first, second, stranger)
        tasks = {"a": {"required_skills": "speak"}, "b": {"required_skills": "hear"}}
        running = plane.start({"tasks": tasks})
        assert (await running.result())["a"] == 1
        await eventually(lambda: heard == [("first", "to all of us", running.id)])
        with pytest.raises(AccessError):
            await stranger.send(f"collaboration/{running.id}", 1)
        with pytest.raises(NotFoundError):
            await first.send("collaboration/none", 1)


# -- over the wire


async def test_a_request_lives_as_long_as_somebody_waits(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    late: list[tuple[str, bool]] = []

    @agent.on_message("status_update")
    async def note(delivery: Delivery) -> None:
        late.append((delivery.message_id, delivery.is_late_reply))

    async with agent:
        await agent.wait_ready()
        assert list(plane.mailbox.hello.features) == ["routes", "instances"]
        with pytest.raises(CallTimeoutError):
            await agent.request("other", 1, timeout=0.05)
        (request,) = plane.broker.stored
        assert request.ttl.ToMilliseconds() == 1_000
        plane.deliver(1, "m1", correlation_id=request.correlation_id)
        plane.deliver(2, "m2")
        plane.deliver(3, "m3", correlation_id=request.correlation_id, sender_id="third")
        await eventually(lambda: len(late) == 3)
    assert late == [("m1", True), ("m2", False), ("m3", False)]


async def test_a_late_reply_that_nobody_handles_is_acked(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    @agent.on_message("heartbeat")
    async def note(delivery: Delivery) -> None:
        pytest.fail("it is no heartbeat")

    async with agent:
        await agent.wait_ready()
        with pytest.raises(CallTimeoutError):
            await agent.request("other", 1, timeout=0.05)
        plane.deliver(1, "m1", correlation_id=plane.broker.stored[0].correlation_id)
        await eventually(
            lambda: [ack.ack_token for frame in plane.mailbox.frames for ack in frame.acks] == [1]
        )


async def test_a_reply_inherits_the_time_that_is_left(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    @agent.on_message()
    async def answer(delivery: Delivery) -> str:
        return "yes"

    async with agent:
        await agent.wait_ready()
        accepted = Timestamp()
        accepted.GetCurrentTime()
        accepted.seconds -= 50
        fields: dict[str, Any] = {"accepted_time": accepted, "traceparent": "t" * 55}
        plane.deliver(1, "m1", correlation_id="q", ttl={"seconds": 60}, **fields)
        plane.deliver(2, "m2", correlation_id="q", ttl={"seconds": 10}, **fields)
        plane.deliver(3, "m3", **fields)
        await eventually(lambda: len(plane.broker.stored) == 3)
    first, second, third = plane.broker.stored
    assert 1_000 <= first.ttl.ToMilliseconds() <= 10_000
    assert second.ttl.ToMilliseconds() == 1_000
    assert not third.HasField("ttl")
    assert (first.correlation_id, first.causation_id, first.traceparent) == ("q", "m1", "t" * 55)


async def test_an_envelope_has_every_field_that_a_sender_sets(plane: FakePlane, agent: Agent) -> None:
    async with agent:
        await agent.send(
            "other",
            1,
            retry_max=7,
            requires_ack=False,
            collaboration_id="c",
            causation_id="cause",
            traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
            tracestate="vendor=1",
            requires_receiver=True,
            reply_instance="north",
        )
    (stored,) = plane.broker.stored
    assert stored.reply_instance == "north"
    assert (stored.retry_max, stored.requires_ack, stored.requires_receiver) == (7, False, True)
    assert (stored.collaboration_id, stored.causation_id, stored.tracestate) == ("c", "cause", "vendor=1")
    assert stored.message_type == envelope_pb2.MESSAGE_TYPE_STATUS_UPDATE


async def test_one_instance_is_written_to_by_its_name(plane: FakePlane, agent: Agent) -> None:
    async with agent:
        agent.send("beta", "for any")
        await agent.send("beta", "for one", instance="north")
        assert [one.receiver_id for one in plane.broker.stored] == ["beta", "beta#north"]


async def test_a_reply_goes_to_the_instance_that_asked(plane: FakePlane, eventually: Eventually) -> None:
    agent = Agent("field-1", ["plan"], instance="north", home=plane.home)

    @agent.on_message()
    async def answer(delivery: Delivery) -> str:
        return "yes"

    async with agent:
        await agent.wait_ready()
        asking = agent.request("other", 1, timeout=10)
        await eventually(lambda: plane.broker.stored)
        assert plane.broker.stored[0].reply_instance == "north"
        plane.deliver(1, "m1", correlation_id=plane.broker.stored[0].correlation_id)
        assert await asking is not None
        plane.deliver(2, "m2", correlation_id="q", reply_instance="south")
        plane.deliver(3, "m3", correlation_id="q")
        await eventually(lambda: len(plane.broker.stored) == 3)
    # Who asked without saying from where is answered as a whole.
    assert [one.receiver_id for one in plane.broker.stored] == ["other", "other#south", "other"]


async def test_in_memory_each_agent_has_one_instance() -> None:
    first, second = Agent("first", instance="north"), Agent("second")
    got: list[Any] = []
    both = asyncio.Event()

    @second.on_message()
    async def note(delivery: Delivery) -> None:
        got.append(delivery.payload)
        both.set()

    @second.on_message("collaboration_request")
    async def answer(delivery: Delivery) -> str:
        return "mine"

    async with InMemoryPlane() as plane:
        plane.add(first, second)
        with pytest.raises(NotFoundError):
            await first.send("second", 1, instance="9")
        await first.send("second", 2, instance=second.instance)
        await asyncio.wait_for(both.wait(), 10)
        # The reply comes from the agent, whichever instance was asked, to the instance that did.
        assert await first.request("second", 3, instance="0") == "mine"
        assert plane.messages[-1].receiver == "first#north"
    assert got == [2]
