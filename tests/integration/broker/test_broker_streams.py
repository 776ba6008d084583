"""The Mailbox stream itself: who may open it, what it refuses, how it breaks, resumes and ends."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from services.common.core.errors import Reason, ServiceError
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope, error_of
from tests.integration.broker.conftest import House


async def reason_of(call: Any) -> Reason | None:
    """Read a raw call to its end and return why it ended; None for a good end."""
    try:
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
        if await call.code() is not grpc.StatusCode.OK:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return None


async def end_of(client: MailboxClient) -> ServiceError:
    error = await client.wait_end()
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (pb.MailboxRequest(), Reason.MALFORMED_FRAME),
        (pb.MailboxRequest(credits=1), Reason.MALFORMED_FRAME),
        (pb.MailboxRequest(hello=pb.MailboxHello(versions=[1]), credits=1), Reason.MALFORMED_FRAME),
        (pb.MailboxRequest(hello=pb.MailboxHello(versions=[2, 3])), Reason.UNSUPPORTED_VERSION),
        (pb.MailboxRequest(hello=pb.MailboxHello()), Reason.UNSUPPORTED_VERSION),
        (
            pb.MailboxRequest(hello=pb.MailboxHello(versions=[1], instance_id="a b")),
            Reason.INVALID_FIELD,
        ),
    ],
)
async def test_a_bad_first_frame_is_refused(opened: House, frame: pb.MailboxRequest, reason: Reason) -> None:
    assert opened.app is not None
    client = MailboxClient(opened.app.address, opened.certificates.tls("agent/alpha"))
    opened.clients.append(client)
    await client.call.write(frame)
    client.start()
    error = await end_of(client)
    assert error.reason is reason
    if reason is Reason.UNSUPPORTED_VERSION:
        assert error.metadata["supported"] == "1"


async def test_silence_instead_of_a_hello_ends_the_stream(house: House) -> None:
    await house.start(hello_timeout_ms=50)
    assert house.app is not None
    client = MailboxClient(house.app.address, house.certificates.tls("agent/alpha"))
    house.clients.append(client)
    client.start()
    assert (await end_of(client)).reason is Reason.MALFORMED_FRAME


@pytest.mark.parametrize(
    "frame",
    [
        {"hello": pb.MailboxHello(versions=[1])},
        {"sends": [envelope(f"m-{n}", "beta") for n in range(1_025)]},
        {"credits": 70_000},
        {"emergency_credits": 70_000},
    ],
)
async def test_a_bad_later_frame_ends_the_stream(opened: House, frame: dict[str, Any]) -> None:
    client = await opened.open("agent/alpha")
    await client.write(**frame)
    error = await end_of(client)
    assert error.reason in {Reason.MALFORMED_FRAME, Reason.INVALID_FIELD}


async def test_hostile_bytes_get_a_typed_end_and_harm_nobody(opened: House) -> None:
    assert opened.app is not None
    rng = random.Random(7)
    channel = make_channel(opened.app.address, opened.certificates.tls("agent/alpha"), "broker")
    ends: set[Reason | None] = set()
    good = pb.MailboxRequest(sends=[envelope("m-1", "beta")], credits=5).SerializeToString()
    for round_ in range(60):
        call: Any = channel.stream_stream("/muster.broker.v1.BrokerService/Mailbox", None, None)(None)
        if round_ % 2:
            await call.write(pb.MailboxRequest(hello=pb.MailboxHello(versions=[1])).SerializeToString())
            await call.read()
        raw = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        await call.write(bytes(raw))
        await call.done_writing()
        ends.add(await reason_of(call))
    await channel.close(None)
    assert Reason.MALFORMED_FRAME in ends
    assert ends <= {
        None,
        Reason.MALFORMED_FRAME,
        Reason.UNSUPPORTED_VERSION,
        Reason.INVALID_FIELD,
        Reason.INCARNATION_FENCED,
    }
    alpha = await opened.open("agent/alpha", incarnation=2**62)
    await alpha.send(envelope("after", "gamma"))
    gamma = await opened.open("agent/gamma")
    (delivery,) = await gamma.take(1)
    assert delivery.envelope.message_id == "after"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"message_id": "a b"}, "sends[0].message_id"),
        ({"message_id": ""}, "sends[0].message_id"),
        ({"receiver_id": "Beta!"}, "sends[0].receiver_id"),
        ({"message_type": 0}, "sends[0].message_type"),
        ({"message_type": 77}, "sends[0].message_type"),
        ({"priority": 9}, "sends[0].priority"),
        ({"retry_max": 101}, "sends[0].retry_max"),
        ({"ttl_ms": 10}, "sends[0].ttl"),
        ({"correlation_id": "x" * 65}, "sends[0].correlation_id"),
        ({"traceparent": "00-abc"}, "sends[0].traceparent"),
    ],
)
async def test_a_bad_envelope_names_its_field_and_refuses_only_itself(
    opened: House, fields: dict[str, Any], named: str
) -> None:
    alpha = await opened.open("agent/alpha")
    good: dict[str, Any] = {"message_id": "m-1", "receiver_id": "beta"}
    made = envelope("", "")
    for name, value in (good | fields).items():
        if name == "ttl_ms":
            made.ttl.FromMilliseconds(value)
        else:
            setattr(made, name, value)
    bad, fine = await alpha.send(made, envelope("m-2", "beta"))
    error = error_of(bad)
    assert error.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.violations] == [named]
    assert not fine.HasField("error")


async def test_a_payload_has_a_largest_size(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    large, fits = await alpha.send(
        envelope("m-1", "beta", b"x" * 65_537), envelope("m-2", "beta", b"x" * 65_536)
    )
    error = error_of(large)
    assert error.reason is Reason.PAYLOAD_TOO_LARGE
    assert (error.metadata["limit_bytes"], error.metadata["size_bytes"]) == ("65536", "65537")
    assert not fits.HasField("error")


async def test_only_agents_and_operators_may_open_a_mailbox(
    opened: House, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ServiceError) as denied:
        await opened.open("service/scheduler")
    assert denied.value.reason is Reason.ACCESS_DENIED
    assert opened.app is not None
    foreign = Certificates(tmp_path_factory.mktemp("foreign"))
    foreign.ca_path.write_bytes(opened.certificates.ca_path.read_bytes())
    channel = make_channel(opened.app.address, foreign.tls("agent/alpha"), "broker")
    stub: Any = BrokerServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as away:
        await stub.GetMailbox(pb.GetMailboxRequest(), timeout=5)
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close(None)


async def test_a_newer_incarnation_fences_the_older(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    old = await opened.open("agent/beta", incarnation=3)
    await alpha.send(envelope("m-1", "beta"))
    (held,) = await old.take(1)
    new = await opened.open("agent/beta", incarnation=4)
    error = await end_of(old)
    assert (error.reason, error.metadata["incarnation"]) == (Reason.INCARNATION_FENCED, "4")
    (again,) = await new.take(1)
    assert (again.envelope.message_id, again.delivery_number) == ("m-1", 2)
    assert again.ack_token != held.ack_token
    with pytest.raises(ServiceError) as late:
        await opened.open("agent/beta", incarnation=3)
    assert late.value.reason is Reason.INCARNATION_FENCED
    # Sending is not receiving: it fences nobody and is not fenced.
    await opened.open("agent/beta", incarnation=1, send_only=True)
    await new.ack([again])


async def test_the_fence_survives_a_restart(house: House) -> None:
    await house.start()
    await house.open("agent/beta", incarnation=7)
    await house.stop()
    await house.start()
    with pytest.raises(ServiceError) as late:
        await house.open("agent/beta", incarnation=6)
    assert late.value.reason is Reason.INCARNATION_FENCED


async def test_a_broken_link_is_resumed_without_loss_or_repeat(opened: House, eventually: Eventually) -> None:
    assert opened.app is not None
    state = opened.app.driver.machine.state
    alpha = await opened.open("agent/alpha")
    before = await opened.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(1, 5)))
    held = await before.take(4)
    await before.close()
    await eventually(lambda: len(state.streams) == 1)
    # It had received two of the four when the link broke.
    after = await opened.open("agent/beta", resume_ack_token=held[1].ack_token)
    rest = await after.take(2)
    assert [one.envelope.sequence_number for one in rest] == [3, 4]
    await after.ack([*held[:2], *rest])
    assert after.deliveries == []


async def test_another_stream_of_the_same_incarnation_takes_over(opened: House) -> None:
    first = await opened.open("agent/beta")
    second = await opened.open("agent/beta")
    assert (await end_of(first)).reason is Reason.WRONG_STATE
    alpha = await opened.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta"))
    await second.take(1)


async def test_who_leaves_well_gets_its_answers_and_gives_back_what_it_holds(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.write(sends=[envelope("m-1", "beta"), envelope("m-2", "beta")])
    await alpha.half_close()
    assert await alpha.wait_end() is None
    assert [outcome.sequence_number for outcome in alpha.outcomes] == [1, 2]
    first, _ = await beta.take(2)
    await beta.write(acks=[pb.Ack(ack_token=first.ack_token)])
    await beta.half_close()
    assert await beta.wait_end() is None
    assert beta.settled == [first.ack_token]
    other = await opened.open("agent/beta", instance_id="other")
    (given_back,) = await other.take(1)
    assert (given_back.envelope.sequence_number, given_back.delivery_number) == (2, 2)


async def test_a_draining_broker_says_so(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    stopping = asyncio.create_task(opened.stop())
    assert (await end_of(alpha)).reason is Reason.SHUTTING_DOWN
    await stopping


async def test_streams_of_one_identity_are_bounded(house: House) -> None:
    await house.start(streams_max_per_agent=2)
    for _ in range(2):
        await house.open("agent/alpha", send_only=True)
    with pytest.raises(ServiceError) as full:
        await house.open("agent/alpha", send_only=True)
    assert full.value.reason is Reason.QUOTA_EXCEEDED


async def test_a_slow_reader_keeps_memory_bounded_and_loses_nothing(house: House) -> None:
    await house.start(unflushed_bytes_max=200_000)
    assert house.app is not None
    alpha = await house.open("agent/alpha")
    slow = MailboxClient(house.app.address, house.certificates.tls("agent/beta"))
    house.clients.append(slow)
    await slow.write(hello=pb.MailboxHello(versions=[1], incarnation=1))
    await slow.write(credits=1_000)
    for start in range(0, 400, 50):
        await alpha.send(
            *(envelope(f"m-{number}", "beta", b"x" * 60_000) for number in range(start, start + 50))
        )
    session = house.app.driver.machine.state.mailboxes["beta"].sessions["0"]
    # What is handed over and not read is bounded; the rest waits in the mailbox.
    assert session.unflushed_bytes <= 200_000 + 64 * 60_200
    slow.start()
    deliveries = await slow.take(400)
    assert [one.envelope.sequence_number for one in deliveries] == list(range(1, 401))
