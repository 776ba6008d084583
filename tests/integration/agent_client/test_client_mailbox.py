"""Messages of an agent, against a stand-in broker: order, repeats, decisions, credits, requests."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from muster.broker.v1 import broker_service_pb2 as broker
from muster.common.v1 import envelope_pb2, payload_pb2, priority_pb2

from agent_client import (
    Agent,
    CallTimeoutError,
    Delivery,
    InvalidRequestError,
    LimitError,
    MessageType,
    NotFoundError,
    PermanentFailure,
    Priority,
    Receipt,
    Task,
)
from services.common.core.errors import Reason, ServiceError
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane


@pytest.fixture
def agent(plane: FakePlane) -> Agent:
    return Agent("field-1", ["plan"], home=plane.home)


def sent_ids(plane: FakePlane) -> list[str]:
    return [envelope.message_id for envelope in plane.broker.stored]


def said(plane: FakePlane, kind: str) -> list[Any]:
    return [item for peer in plane.broker.streams for frame in peer.frames for item in getattr(frame, kind)]


def tokens(plane: FakePlane, kind: str) -> list[int]:
    return [item.ack_token for item in said(plane, kind)]


async def test_a_send_returns_when_it_is_stored(plane: FakePlane, agent: Agent) -> None:
    async with agent:
        receipt = await agent.send(
            "other", {"road": 3}, type="resource_request", priority="high", correlation_id="k", ttl=90
        )
        assert receipt == Receipt(1, "other")
    (stored,) = plane.broker.stored
    assert stored.receiver_id == "other"
    assert stored.message_type == envelope_pb2.MESSAGE_TYPE_RESOURCE_REQUEST
    assert stored.priority == priority_pb2.PRIORITY_HIGH
    assert stored.requires_ack
    assert stored.correlation_id == "k"
    assert stored.ttl.ToSeconds() == 90
    assert json.loads(stored.payload.data) == {"road": 3}


async def test_unanswered_messages_are_sent_again_in_order(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    plane.broker.answers = False
    async with agent:
        await agent.wait_ready()
        sends = [agent.send("other", number) for number in range(50)]
        await eventually(lambda: len(plane.broker.stored) == 50)
        await plane.down("broker")
        sends += [agent.send("other", number) for number in range(50, 80)]
        plane.broker.answers = True
        await plane.up("broker")
        assert [one.sequence_number for one in await asyncio.gather(*sends)] == list(range(1, 81))
    assert [json.loads(envelope.payload.data) for envelope in plane.broker.stored] == list(range(80))
    resent = [envelope.message_id for frame in plane.mailbox.frames for envelope in frame.sends]
    assert resent == sent_ids(plane)


async def test_an_indefinite_answer_leads_to_a_repeat_and_a_definite_one_to_the_sender(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    plane.broker.errors = {
        "nobody": ServiceError(Reason.AGENT_NOT_FOUND, "no agent nobody"),
        "full": ServiceError(Reason.MAILBOX_FULL, "full", retry_after_ms=250),
        "other": ServiceError(Reason.STORE_UNAVAILABLE, "the disk does not answer"),
    }
    async with agent:
        await agent.wait_ready()
        with pytest.raises(NotFoundError, match="no agent nobody"):
            await agent.send("nobody", 1)
        with pytest.raises(LimitError) as full:
            await agent.send("full", 1)
        assert (full.value.retry_after, full.value.definite) == (0.25, True)
        pending = agent.send("other", 1)
        await eventually(lambda: len(plane.broker.streams) >= 2)
        plane.broker.errors = {}
        assert (await pending).sequence_number == 1


async def test_send_credits_are_respected(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    plane.broker.send_credits = 3
    plane.broker.answers = False
    async with agent:
        await agent.wait_ready()
        pending = [agent.send("other", number) for number in range(5)]
        await eventually(lambda: len(plane.broker.stored) == 3)
        plane.broker.answers = True
        plane.mailbox.say(broker.MailboxResponse(send_credits=2))
        await eventually(lambda: len(plane.broker.stored) == 5)
        assert (await pending[4]).sequence_number == 5
        # Those that the broker did not answer are what leaving would wait for.
        plane.mailbox.say(
            broker.MailboxResponse(
                accepted=[broker.SendOutcome(message_id=message_id) for message_id in sent_ids(plane)[:3]]
            )
        )
        await asyncio.gather(*pending)


async def test_bad_messages_are_refused_before_they_leave(plane: FakePlane, agent: Agent) -> None:
    async with agent:
        with pytest.raises(InvalidRequestError, match="message_type: 'gossip' is none of TASK_REQUEST"):
            agent.send("other", 1, type="gossip")
        with pytest.raises(InvalidRequestError, match="priority: 'urgent' is none of EMERGENCY"):
            agent.send("other", 1, priority="urgent")
        with pytest.raises(InvalidRequestError, match="receiver_id"):
            agent.send("", 1)
        with pytest.raises(InvalidRequestError, match="65,536"):
            agent.send("other", b"x" * 65_537)
        # As code without types calls it.
        anything: Any = agent
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("receiver_id", lambda: anything.send(5, 1)),
            ("priority", lambda: anything.send("other", 1, priority=[1])),
            ("ttl", lambda: agent.send("other", 1, ttl=math.nan)),
            ("retry_max", lambda: agent.send("other", 1, retry_max="x")),
            ("correlation_id", lambda: anything.send("other", 1, correlation_id=5)),
            ("nonsense", lambda: agent.send("other", 1, nonsense=1)),
            ("timeout", lambda: agent.request("other", 1, timeout=0)),
            ("timeout", lambda: agent.request("other", 1, timeout=math.inf)),
            ("timeout", lambda: anything.request("other", 1, timeout=None)),
            ("topic", lambda: agent.publish("", 1)),
            ("topic", lambda: anything.publish(None, 1)),
            ("pattern", lambda: anything.subscribe(4)),
        ]
        for field, call in calls:
            with pytest.raises(InvalidRequestError) as refused:
                call()
            assert refused.value.violations[0].field == field
        # What no rule foresees is told as well, and keeps nobody waiting.
        with pytest.raises(InvalidRequestError, match="can not be written"):
            await asyncio.wait_for(agent.send("\ud800", 1), 10)
    assert not plane.broker.stored


async def test_bad_decisions_are_refused_and_may_be_made_again(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        messages = agent.messages()
        taken = asyncio.create_task(anext(messages))
        await eventually(lambda: plane.mailbox.frames)
        plane.deliver(1, "m1")
        delivery: Any = await taken
        calls: list[tuple[str, Callable[[], Any]]] = [
            *(("seconds", partial(delivery.extend, bad)) for bad in (0, -1, 4_000, math.nan, "x")),
            *(("delay", partial(delivery.nack, bad)) for bad in (-1, 4_000, math.inf, "x")),
            ("reason", partial(delivery.reject, None)),
        ]
        for field, call in calls:
            with pytest.raises(InvalidRequestError) as refused:
                call()
            assert refused.value.violations[0].field == field
        assert not delivery.settled
        delivery.ack()
        await eventually(lambda: [ack.ack_token for frame in plane.mailbox.frames for ack in frame.acks])


async def test_messages_are_iterated_and_decided(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        messages = agent.messages()
        first = asyncio.ensure_future(anext(messages))
        await eventually(lambda: plane.mailbox.frames)
        assert (plane.mailbox.frames[0].credits, plane.mailbox.frames[0].emergency_credits) == (256, 64)
        for token in range(1, 6):
            plane.deliver(token, f"m{token}", sequence_number=token, correlation_id="k")
        delivery = await first
        assert (delivery.sender, delivery.type, delivery.payload) == (
            "other",
            MessageType.STATUS_UPDATE,
            {"n": 1},
        )
        assert (delivery.priority, delivery.sequence_number, delivery.delivery_number) == (
            Priority.NORMAL,
            1,
            1,
        )
        delivery.ack()
        delivery.ack()
        assert delivery.settled
        (await anext(messages)).reject("makes no sense")
        third = await anext(messages)
        third.extend(60)
        assert (await third.reply("yes")).sequence_number == 1
        third.ack()
        (await anext(messages)).nack(1.5)
        await eventually(lambda: tokens(plane, "nacks"))
        # The nack is confirmed, and the broker took nothing else back: the next one may come.
        (await anext(messages)).ack()
        await eventually(lambda: tokens(plane, "acks") == [1, 3, 5])
    assert [(item.ack_token, item.reason) for item in said(plane, "rejects")] == [(2, "makes no sense")]
    assert [(item.ack_token, item.delay.ToMilliseconds()) for item in said(plane, "nacks")] == [(4, 1500)]
    assert [(item.ack_token, item.extension.ToSeconds()) for item in said(plane, "extends")] == [(3, 60)]
    (reply,) = plane.broker.stored
    assert (reply.receiver_id, reply.correlation_id, reply.causation_id) == ("other", "k", "m3")


async def test_without_a_reader_messages_stay_at_the_broker(plane: FakePlane, agent: Agent) -> None:
    async with agent:
        await agent.wait_ready()
        await agent.send("other", 1)
        assert all(frame.credits == 0 for frame in plane.mailbox.frames)


async def test_handlers_ack_nack_reject_and_reply(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    failing = True

    @agent.on_message("status_update")
    async def note(delivery: Delivery) -> None:
        if failing:
            raise ValueError("not now")

    @agent.on_message("task_request")
    def answer(delivery: Delivery) -> dict[str, Any]:
        return {"you said": delivery.payload}

    @agent.on_message("emergency")
    async def refuse(delivery: Delivery) -> None:
        raise PermanentFailure("not an emergency")

    async with agent:
        await agent.wait_ready()
        plane.deliver(1, "m1", sequence_number=1)
        await eventually(lambda: tokens(plane, "nacks") == [1])
        failing = False
        plane.deliver(2, "m1", sequence_number=1)
        await eventually(lambda: tokens(plane, "acks") == [2])
        plane.deliver(3, "m3", message_type=envelope_pb2.MESSAGE_TYPE_TASK_REQUEST, correlation_id="q")
        await eventually(lambda: tokens(plane, "acks") == [2, 3])
        (reply,) = plane.broker.stored
        assert (reply.message_type, reply.correlation_id) == (envelope_pb2.MESSAGE_TYPE_TASK_RESPONSE, "q")
        assert json.loads(reply.payload.data) == {"you said": {"n": 1}}
        plane.deliver(4, "m4", message_type=envelope_pb2.MESSAGE_TYPE_EMERGENCY)
        plane.deliver(5, "m5", message_type=envelope_pb2.MESSAGE_TYPE_HEARTBEAT, sender_id="third")
        await eventually(lambda: sorted(tokens(plane, "rejects")) == [4, 5])
    reasons = {item.ack_token: item.reason for item in said(plane, "rejects")}
    assert reasons == {4: "not an emergency", 5: "the receiver has no handler for HEARTBEAT"}


async def test_one_domain_is_handled_in_order_and_others_meanwhile(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    """M3 and M4, the receiver's side."""
    handled: list[str] = []
    gate = asyncio.Event()

    @agent.on_message()
    async def note(delivery: Delivery) -> None:
        if delivery.message_id == "a1":
            await gate.wait()
        handled.append(delivery.message_id)

    async with agent:
        await agent.wait_ready()
        for token, (sender, message_id) in enumerate([("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")], 1):
            plane.deliver(token, message_id, sender_id=sender)
        await eventually(lambda: handled == ["b1", "b2"])
        gate.set()
        await eventually(lambda: handled == ["b1", "b2", "a1", "a2"])


async def test_a_redelivery_has_one_effect(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    """M2, the receiver's side."""
    handled: list[str] = []
    gate = asyncio.Event()

    @agent.on_message()
    async def note(delivery: Delivery) -> None:
        handled.append(delivery.message_id)
        if delivery.message_id == "m1":
            await gate.wait()

    async with agent:
        await agent.wait_ready()
        plane.deliver(1, "m1")
        await eventually(lambda: handled == ["m1"])
        # Its ack deadline passed while the handler works: taken back, and given again.
        plane.mailbox.say(broker.MailboxResponse(recalled=[1]))
        plane.deliver(2, "m1")
        plane.deliver(3, "x1", sender_id="third")
        await eventually(lambda: tokens(plane, "acks") == [3])
        gate.set()
        await eventually(lambda: tokens(plane, "acks") == [3, 2])
        plane.deliver(4, "m1")
        await eventually(lambda: tokens(plane, "acks") == [3, 2, 4])
    assert handled == ["m1", "x1"]


async def test_what_is_recalled_while_it_waits_comes_again_in_order(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    handled: list[tuple[str, int]] = []
    gate = asyncio.Event()

    @agent.on_message()
    async def note(delivery: Delivery) -> None:
        await gate.wait()
        handled.append((delivery.message_id, delivery.sequence_number))
        if len(handled) == 1:
            raise ValueError("the first time")

    async with agent:
        await agent.wait_ready()
        plane.deliver(1, "m1", sequence_number=1)
        plane.deliver(2, "m2", sequence_number=2)
        plane.deliver(3, "m3", sequence_number=3)
        plane.broker.answers = False
        gate.set()
        await eventually(lambda: tokens(plane, "nacks") == [1])
        plane.mailbox.say(broker.MailboxResponse(recalled=[2, 3], settled=[1]))
        for token, number in ((4, 1), (5, 2), (6, 3)):
            plane.deliver(token, f"m{number}", sequence_number=number)
        await eventually(lambda: tokens(plane, "acks") == [4, 5, 6])
        # Leaving waits for what the broker has not confirmed.
        plane.mailbox.say(broker.MailboxResponse(settled=[4, 5, 6]))
    assert handled == [("m1", 1), ("m1", 1), ("m2", 2), ("m3", 3)]


async def test_a_lost_link_resumes_where_it_was(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    handled: list[str] = []
    gate = asyncio.Event()

    @agent.on_message()
    async def note(delivery: Delivery) -> None:
        if delivery.message_id == "m2":
            await gate.wait()
        handled.append(delivery.message_id)

    async with agent:
        await agent.wait_ready()
        plane.broker.answers = False
        plane.deliver(1, "m1")
        plane.deliver(2, "m2")
        await eventually(lambda: tokens(plane, "acks") == [1])
        await plane.down("broker")
        plane.broker.answers = True
        await plane.up("broker")
        await eventually(lambda: len(plane.broker.streams) == 2)
        assert plane.mailbox.hello.resume_ack_token == 2
        # The ack of m1 was not confirmed, so it is said again; m2 is still ours and acked here.
        gate.set()
        await eventually(lambda: tokens(plane, "acks") == [1, 1, 2])
    assert handled == ["m1", "m2"]


async def test_a_request_waits_for_its_reply(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    async with agent:
        await agent.wait_ready()
        asking = asyncio.ensure_future(agent.request("other", {"may": "I?"}, timeout=30))
        await eventually(lambda: plane.broker.stored)
        (request,) = plane.broker.stored
        assert request.message_type == envelope_pb2.MESSAGE_TYPE_COLLABORATION_REQUEST
        # The same correlation id from somebody else is no reply.
        plane.deliver(1, "m1", sender_id="third", correlation_id=request.correlation_id)
        plane.deliver(2, "m2", sender_id="other", correlation_id=request.correlation_id)
        assert await asking == {"n": 1}
        await eventually(lambda: tokens(plane, "acks") == [2])
        with pytest.raises(CallTimeoutError, match=r"no reply within 0\.05 s"):
            await agent.request("other", 1, timeout=0.05)
        plane.broker.errors = {"nobody": ServiceError(Reason.AGENT_NOT_FOUND, "no agent nobody")}
        with pytest.raises(NotFoundError):
            await agent.request("nobody", 1)


async def test_tasks_send_and_ask_also_from_threads(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    @agent.handler("plan")
    def plan(task: Task) -> Any:
        task.send(task.coordinator, "half way").result(10)
        return task.request("other", "and?", timeout=10).result()

    async with agent:
        await agent.wait_ready()
        plane.assign("t", coordinator_agent="chief")
        await eventually(lambda: len(plane.broker.stored) == 2)
        first, second = plane.broker.stored
        assert (first.receiver_id, first.collaboration_id, first.causation_id) == ("chief", "c1", "t#1")
        plane.deliver(1, "m1", correlation_id=second.correlation_id)
        await eventually(lambda: plane.results)
    assert json.loads(plane.results[0].result.data) == {"n": 1}


async def test_an_emergency_overtakes_what_waits(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        messages = agent.messages()
        waiting = asyncio.ensure_future(anext(messages))
        await eventually(lambda: plane.mailbox.frames)
        envelopes = [
            envelope_pb2.Envelope(
                message_id=f"m{token}",
                sender_id="other",
                message_type=envelope_pb2.MESSAGE_TYPE_STATUS_UPDATE,
                priority=priority,
                payload=payload_pb2.Payload(),
            )
            for token, priority in enumerate(
                [priority_pb2.PRIORITY_NORMAL, priority_pb2.PRIORITY_EMERGENCY], 1
            )
        ]
        plane.mailbox.say(
            broker.MailboxResponse(
                deliveries=[
                    broker.Delivery(ack_token=token, envelope=envelope)
                    for token, envelope in enumerate(envelopes, 1)
                ]
            )
        )
        assert (await waiting).message_id == "m2"
        assert (await anext(messages)).message_id == "m1"
