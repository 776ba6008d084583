"""Skills, collaborations and topics over real sockets and a real file."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from services.broker.core.model import AgentProfile, Reach
from services.broker.peers import AgentsView
from services.common.core.errors import Reason
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from tests.conftest import Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope, error_of
from tests.integration.broker.conftest import AGENTS, House


async def routes(house: House, principal: str, **hello: Any) -> MailboxClient:
    """Open a stream that agreed on routes."""
    return await house.open(principal, features=["routes"], **hello)


async def ask(house: House, principal: str, method: str, request: Any) -> Any:
    """Call a method as somebody; raises the typed error."""
    assert house.app is not None
    channel = make_channel(house.app.address, house.certificates.tls(principal), "broker")
    try:
        return await getattr(BrokerServiceStub(channel), method)(request)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        await channel.close(None)


async def subscribe(house: House, principal: str, pattern: str, agent_id: str = "") -> None:
    await ask(house, principal, "Subscribe", pb.SubscribeRequest(pattern=pattern, agent_id=agent_id))


async def test_the_handshake_agrees_on_what_both_know(opened: House) -> None:
    agreed = await opened.open("agent/alpha", features=["routes", "from-the-future"], versions=[1, 9])
    assert (agreed.welcome.version, list(agreed.welcome.features)) == (1, ["routes"])
    plain = await opened.open("agent/beta")
    assert list(plain.welcome.features) == []
    (refused,) = await plain.send(envelope("m-1", "topic/roads"))
    assert "routes" in error_of(refused).violations[0].description


async def test_a_topic_reaches_its_subscribers_also_after_a_restart(house: House) -> None:
    await house.start()
    await subscribe(house, "agent/beta", "roads.*")
    sender = await routes(house, "agent/alpha")
    (outcome,) = await sender.send(envelope("m-1", "topic/roads.closed", requires_receiver=True))
    assert (outcome.receiver_count, outcome.receiver_id, outcome.sequence_number) == (1, "", 0)
    await house.stop()
    await house.start()
    # What was accepted is there, who subscribed still is, and a repeat gets the first outcome.
    sender = await routes(house, "agent/alpha")
    again, second = await sender.send(
        envelope("m-1", "topic/roads.closed", requires_receiver=True), envelope("m-2", "topic/roads.open")
    )
    assert (again.receiver_count, second.receiver_count) == (1, 1)
    receiver = await routes(house, "agent/beta")
    first, other = [one.envelope for one in await receiver.take(2)]
    assert (first.receiver_id, first.address, first.sequence_number) == ("beta", "topic/roads.closed", 1)
    assert (other.receiver_id, other.address, other.sequence_number) == ("beta", "topic/roads.open", 2)
    await ask(house, "agent/beta", "Unsubscribe", pb.UnsubscribeRequest(pattern="roads.*"))
    third, fourth = await sender.send(
        envelope("m-3", "topic/roads.closed"), envelope("m-4", "topic/roads.closed", requires_receiver=True)
    )
    assert (third.receiver_count, third.HasField("error")) == (0, False)
    assert error_of(fourth).reason is Reason.RECEIVER_NOT_FOUND


async def test_subscriptions_are_listed_and_belong_to_their_owner(opened: House) -> None:
    for pattern in ("b.**", "a"):
        await subscribe(opened, "agent/beta", pattern)
    request = pb.ListSubscriptionsRequest
    assert list((await ask(opened, "agent/beta", "ListSubscriptions", request())).patterns) == ["a", "b.**"]
    for method, made in (
        ("ListSubscriptions", request(agent_id="beta")),
        ("Subscribe", pb.SubscribeRequest(agent_id="beta", pattern="c")),
        ("Unsubscribe", pb.UnsubscribeRequest(agent_id="beta", pattern="a")),
    ):
        with pytest.raises(Exception, match="ACCESS_DENIED"):
            await ask(opened, "agent/alpha", method, made)
        with pytest.raises(Exception, match="ACCESS_DENIED"):
            await ask(opened, "service/scheduler", method, made)
    # An operator may, and that is recorded before it is done.
    await ask(opened, "operator/admin", "Unsubscribe", pb.UnsubscribeRequest(agent_id="beta", pattern="a"))
    found = await ask(opened, "operator/admin", "ListSubscriptions", request(agent_id="beta"))
    assert list(found.patterns) == ["b.**"]
    assert "mailbox.unsubscribe" in opened.outbox.operations()
    with pytest.raises(Exception, match="INVALID_FIELD"):
        await subscribe(opened, "agent/beta", "a..b")
    with pytest.raises(Exception, match="AGENT_NOT_FOUND"):
        await ask(opened, "operator/admin", "ListSubscriptions", request(agent_id="nobody"))
    assert not (await ask(opened, "operator/admin", "ListSubscriptions", request())).patterns


async def test_ones_own_mailbox_is_there_before_it_was_ever_used(opened: House) -> None:
    """An operator's first look is no error; a name that nobody has is one."""
    box = await ask(opened, "operator/fresh", "GetMailbox", pb.GetMailboxRequest())
    assert (box.agent_id, len(box.lanes), box.dead_letter_count) == ("operator/fresh", 4, 0)
    listed = await ask(opened, "operator/fresh", "ListDeadLetters", pb.ListDeadLettersRequest())
    assert not listed.dead_letters
    request = pb.DropDeadLettersRequest(dead_letter_ids=[1])
    (outcome,) = (await ask(opened, "operator/fresh", "DropDeadLetters", request)).outcomes
    assert error_of(outcome).reason is Reason.MESSAGE_NOT_FOUND
    for method, asked in (
        ("GetMailbox", pb.GetMailboxRequest(agent_id="operator/none")),
        ("ListDeadLetters", pb.ListDeadLettersRequest(agent_id="nobody")),
        ("DropDeadLetters", pb.DropDeadLettersRequest(agent_id="nobody", dead_letter_ids=[1])),
    ):
        with pytest.raises(Exception, match="AGENT_NOT_FOUND"):
            await ask(opened, "operator/fresh", method, asked)


async def test_subscriptions_are_bounded(house: House) -> None:
    await house.start(subscriptions_max_per_agent=1)
    await subscribe(house, "agent/beta", "a")
    with pytest.raises(Exception, match="subscriptions_max_per_agent"):
        await subscribe(house, "agent/beta", "b")


async def test_a_skill_is_one_agent_the_least_loaded(opened: House, eventually: Eventually) -> None:
    busy = AgentProfile(frozenset({"plans"}), Reach.READY, 2, 2)
    free = busy._replace(slots_used=0)
    sender = await routes(opened, "agent/alpha")
    (unknown,) = await sender.send(envelope("m-0", "skill/plans"))
    assert error_of(unknown).reason is Reason.RECEIVER_NOT_FOUND
    view = AgentsView(AGENTS, complete=False, profiles={"beta": busy, "gamma": free})
    await opened.agents.news.put(view)
    app = opened.app
    assert app is not None
    await eventually(lambda: "plans" in app.driver.machine.state.skilled)
    (outcome,) = await sender.send(envelope("m-1", "skill/plans"))
    assert (outcome.receiver_id, outcome.receiver_count, outcome.sequence_number) == ("gamma", 1, 1)
    receiver = await routes(opened, "agent/gamma")
    (delivery,) = await receiver.take(1)
    assert (delivery.envelope.receiver_id, delivery.envelope.address) == ("gamma", "skill/plans")


async def test_members_hear_each_other_also_while_the_scheduler_is_away(opened: House) -> None:
    opened.members.teams["c-1"] = frozenset({"alpha", "beta", "gamma"})
    sender, stranger = await routes(opened, "agent/alpha"), await routes(opened, "operator/admin")
    (outcome,) = await sender.send(envelope("m-1", "collaboration/c-1"))
    assert outcome.receiver_count == 2
    receivers = [await routes(opened, "agent/beta"), await routes(opened, "agent/gamma")]
    for receiver in receivers:
        (delivery,) = await receiver.take(1)
        assert delivery.envelope.address == "collaboration/c-1"
        await receiver.ack([delivery])
    # Membership is asked for anew each time.
    opened.members.teams["c-1"] = frozenset({"alpha", "beta"})
    (outcome,) = await sender.send(envelope("m-2", "collaboration/c-1"))
    assert outcome.receiver_count == 1
    opened.members.away = True
    (outcome,) = await sender.send(envelope("m-3", "collaboration/c-1"))
    assert outcome.receiver_count == 1
    (unheard,) = await sender.send(envelope("m-4", "collaboration/c-2"))
    assert error_of(unheard).reason is Reason.ROUTE_UNAVAILABLE
    (allowed,) = await stranger.send(envelope("m-5", "collaboration/c-1"))
    assert allowed.receiver_count == 2


async def test_an_unknown_collaboration_and_a_stranger_are_refused(opened: House) -> None:
    opened.members.teams["c-1"] = frozenset({"beta", "gamma"})
    sender = await routes(opened, "agent/alpha")
    denied, unknown = await sender.send(
        envelope("m-1", "collaboration/c-1"), envelope("m-2", "collaboration/c-9")
    )
    assert error_of(denied).reason is Reason.ACCESS_DENIED
    assert error_of(unknown).reason is Reason.COLLABORATION_NOT_FOUND


async def test_what_follows_a_question_keeps_its_place(opened: House) -> None:
    """A frame that waits for the scheduler is not overtaken by the next one of its stream."""
    opened.members.teams["c-1"] = frozenset({"alpha", "beta"})
    sender = await routes(opened, "agent/alpha")
    ids = [f"m-{number}" for number in range(40)]
    for number, message_id in enumerate(ids):
        address = "collaboration/c-1" if number % 3 == 0 else "beta"
        await sender.write(sends=[envelope(message_id, address)])
    await sender.wait(lambda: len(sender.outcomes) == len(ids))
    receiver = await routes(opened, "agent/beta")
    assert [one.envelope.message_id for one in await receiver.take(len(ids))] == ids


async def test_one_instance_gets_what_is_for_it_only_also_after_a_restart(
    house: House, eventually: Eventually
) -> None:
    await house.start()
    north = await house.open("agent/beta", features=["instances"], instance_id="north")
    south = await house.open("agent/beta", features=["instances"], instance_id="south")
    alpha = await house.open("agent/alpha", features=["instances"])
    unknown, first, any_one = await alpha.send(
        envelope("m-1", "beta#west"), envelope("m-2", "beta#south"), envelope("m-3", "beta")
    )
    assert error_of(unknown).reason is Reason.RECEIVER_NOT_FOUND
    assert (first.sequence_number, any_one.sequence_number) == (1, 1)
    (delivery,) = [one for one in await south.take(1) if one.envelope.receiver_id == "beta#south"]
    assert delivery.envelope.payload.data == b"hello"
    (shared,) = await north.take(1)
    assert shared.envelope.receiver_id == "beta"
    await north.ack([shared])
    await house.stop()
    await house.start()
    # It was not answered, and waits for its instance, not for any.
    north = await house.open("agent/beta", features=["instances"], instance_id="north", incarnation=2)
    alpha = await house.open("agent/alpha", features=["instances"])
    await alpha.send(envelope("m-4", "beta"))
    (shared,) = await north.take(1)
    assert shared.envelope.message_id == "m-4"
    south = await house.open("agent/beta", features=["instances"], instance_id="south", incarnation=2)
    (again,) = await south.take(1)
    assert (again.envelope.message_id, again.envelope.receiver_id) == ("m-2", "beta#south")
    await south.write(rejects=[pb.Reject(ack_token=again.ack_token, reason="no")])
    await south.wait(lambda: south.tombstones)
    assert south.tombstones[0].receiver_id == "beta#south"
    # People see one mailbox.
    listed = await ask(house, "operator/admin", "ListDeadLetters", pb.ListDeadLettersRequest(agent_id="beta"))
    (letter,) = listed.dead_letters
    assert letter.envelope.receiver_id == "beta#south"
    held = await ask(house, "operator/admin", "GetMailbox", pb.GetMailboxRequest(agent_id="beta"))
    assert held.dead_letter_count == 1
    request = pb.ReplayDeadLettersRequest(agent_id="beta", dead_letter_ids=[letter.dead_letter_id])
    (outcome,) = (await ask(house, "operator/admin", "ReplayDeadLetters", request)).outcomes
    assert outcome.sequence_number == 2
    (replayed,) = await south.take(1)
    assert replayed.envelope.message_id == "m-2"
    # Identities are those of certificates, whichever instance it was.
    await south.ack([replayed])
    # Recorded a moment after it is done.
    await eventually(lambda: house.outbox.operations().count("envelope.ack") > 1)
    assert {one.actor for one in house.outbox.entries if one.operation.startswith("envelope.re")} == {
        "agent/beta"
    }
    assert "agent/beta#south" not in {one.actor for one in house.outbox.entries}
