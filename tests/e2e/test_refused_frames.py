"""Frames and bytes that no honest client sends, to a running plane; it stays whole through them.

All tests share one plane. The last one looks at what the others left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import grpc
import pytest
from google.protobuf import descriptor_pool
from muster.audit.v1 import audit_service_pb2 as audit_pb
from muster.audit.v1 import entry_pb2
from muster.broker.v1 import broker_service_pb2 as broker_pb
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.scheduler.v1 import task_pb2, work_pb2

from services.common.core.errors import Reason
from services.common.rpc.status import from_status
from tests.e2e.raw_calls import (
    GARBAGE,
    PACKAGES,
    PATIENCE_S,
    REPLICAS,
    answer_with,
    channel,
    leader,
    refusal,
    service_of,
    stream_end,
    stub,
)
from tests.e2e.wholeness import Usage, assert_whole, usage
from tests.harness.launched import Launched, launched_plane

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched_plane(tmp_path_factory.mktemp("plane")) as launched:
        yield launched


@pytest.fixture(scope="module")
def before(plane: Launched) -> Usage:
    return usage(plane)


@pytest.fixture(autouse=True)
def _measured_first(before: Usage) -> None:
    """See that every test comes after the first measurement."""


STREAMS = {
    "/muster.registry.v1.RegistryService/Session": ("registry", "agent/babbler"),
    "/muster.broker.v1.BrokerService/Mailbox": ("broker", "agent/babbler"),
    "/muster.scheduler.v1.SchedulerService/Work": ("scheduler", "agent/babbler"),
    "/muster.scheduler.v1.SchedulerService/Submit": ("scheduler", "agent/babbler"),
    "/muster.audit.v1.AuditService/Append": ("audit", "service/broker"),
}


@pytest.mark.parametrize("method", STREAMS)
async def test_bytes_that_are_no_frame(plane: Launched, method: str) -> None:
    service, who = STREAMS[method]
    replica = await leader(plane) if service == "scheduler" else f"{service}-1"
    async with channel(plane, replica, who) as opened:
        error = await stream_end(opened.stream_stream(method)(), GARBAGE)
        assert error.reason is Reason.MALFORMED_FRAME


@pytest.mark.parametrize(
    "method", [name for name in STREAMS if "/Append" not in name and "/Submit" not in name]
)
async def test_a_stream_that_does_not_begin_with_a_hello(plane: Launched, method: str) -> None:
    service, who = STREAMS[method]
    replica = await leader(plane) if service == "scheduler" else f"{service}-1"
    async with channel(plane, replica, who) as opened:
        # An empty message is a frame of every stream, and a hello of none.
        for frames in ([b""], []):
            error = await stream_end(opened.stream_stream(method)(), *frames, close=True)
            assert error.reason is Reason.MALFORMED_FRAME


async def test_frames_that_come_at_the_wrong_time(plane: Launched) -> None:
    """Garbage and a second hello, after a good beginning, on every stream of an agent."""
    async with channel(plane, "registry-1", "agent/babbler") as registry:
        skills = [agent_pb2.Skill(name="babble")]
        hello = registry_pb.SessionRequest(hello=registry_pb.SessionHello(versions=[1], skills=skills))
        calls = stub("registry", registry)
        assert (await stream_end(calls.Session(), hello, hello)).reason is Reason.MALFORMED_FRAME
        raw = registry.stream_stream("/muster.registry.v1.RegistryService/Session")()
        error = await stream_end(raw, hello.SerializeToString(), GARBAGE)
        assert error.reason is Reason.MALFORMED_FRAME
        old = registry_pb.SessionRequest(hello=registry_pb.SessionHello(versions=[99], skills=skills))
        error = await stream_end(calls.Session(), old)
        assert (error.reason, error.metadata["supported"]) == (Reason.UNSUPPORTED_VERSION, "1")

        session = calls.Session()
        await session.write(hello)
        welcome = (await asyncio.wait_for(session.read(), PATIENCE_S)).welcome
        await bad_work_frames(plane, welcome.incarnation)
        await bad_mailbox_frames(plane, welcome.incarnation)
        await session.write(registry_pb.SessionRequest(farewell=registry_pb.SessionFarewell()))
        await session.done_writing()
        await asyncio.wait_for(session.code(), PATIENCE_S)


async def bad_work_frames(plane: Launched, incarnation: int) -> None:
    async with channel(plane, await leader(plane), "agent/babbler") as opened:
        hello = work_pb2.WorkRequest(hello=work_pb2.WorkHello(versions=[1], incarnation=incarnation))
        calls = stub("scheduler", opened)
        assert (await stream_end(calls.Work(), hello, hello)).reason is Reason.MALFORMED_FRAME
        raw = opened.stream_stream("/muster.scheduler.v1.SchedulerService/Work")()
        error = await stream_end(raw, hello.SerializeToString(), GARBAGE)
        assert error.reason is Reason.MALFORMED_FRAME
        # A result that nobody asked for is refused; the stream goes on.
        stream = calls.Work()
        await stream.write(hello)
        result = work_pb2.AttemptResult(cancelled=True)
        result.attempt.collaboration_id, result.attempt.task_id = "c-nowhere", "a"
        result.attempt.token.epoch, result.attempt.token.number = 1, 1
        for _ in range(2):
            await stream.write(work_pb2.WorkRequest(results=[result]))
            ack = (await answer_with(stream, "result_acks")).result_acks[0]
            assert from_status(ack.error).reason is Reason.COLLABORATION_NOT_FOUND
        wanted = work_pb2.LockRequest(lock_request_id=1, claims=[task_pb2.ResourceClaim(resource="no/such")])
        await stream.write(work_pb2.WorkRequest(lock_requests=[wanted]))
        refused = (await answer_with(stream, "lock_refusals")).lock_refusals[0]
        assert from_status(refused.error).reason is Reason.INVALID_FIELD
        stream.cancel()


async def bad_mailbox_frames(plane: Launched, incarnation: int) -> None:
    async with channel(plane, "broker-1", "agent/babbler") as opened:
        hello = broker_pb.MailboxRequest(hello=broker_pb.MailboxHello(versions=[1], incarnation=incarnation))
        calls = stub("broker", opened)
        assert (await stream_end(calls.Mailbox(), hello, hello)).reason is Reason.MALFORMED_FRAME
        raw = opened.stream_stream("/muster.broker.v1.BrokerService/Mailbox")()
        error = await stream_end(raw, hello.SerializeToString(), GARBAGE)
        assert error.reason is Reason.MALFORMED_FRAME
        # An ack of what was never delivered is refused; the stream goes on.
        stream = calls.Mailbox()
        await stream.write(hello)
        for _ in range(2):
            await stream.write(broker_pb.MailboxRequest(acks=[broker_pb.Ack(ack_token=2**40)]))
            refused = (await answer_with(stream, "refusals")).refusals[0]
            assert from_status(refused.error).reason is Reason.STALE_ACK_TOKEN
        stream.cancel()


async def test_frames_of_entries_that_are_no_log(plane: Launched) -> None:
    async with channel(plane, "audit-1", "service/broker") as opened:
        for frame in (
            audit_pb.AppendRequest(first_sequence_number=1, spool_id="bad"),
            audit_pb.AppendRequest(first_sequence_number=0, spool_id="bad", entries=[entry_pb2.Entry()]),
        ):
            stream = stub("audit", opened).Append()
            await stream.write(frame)
            answer = await asyncio.wait_for(stream.read(), PATIENCE_S)
            error = from_status(answer.error)
            assert error.reason in (Reason.INVALID_FIELD, Reason.MALFORMED_FRAME)
            # The stream ends after it.
            assert await asyncio.wait_for(stream.read(), PATIENCE_S) is grpc.aio.EOF  # type: ignore[attr-defined]


FOR_SERVICES = {"GetMembers"}


async def test_unary_requests_that_are_no_message(plane: Launched) -> None:
    for replica in REPLICAS:
        async with channel(plane, replica, "operator/admin") as opened:
            service = descriptor_pool.Default().FindServiceByName(PACKAGES[service_of(replica)])
            for method in service.methods:
                if method.client_streaming or method.server_streaming:
                    continue
                error = await refusal(opened.unary_unary(f"/{service.full_name}/{method.name}")(GARBAGE))
                # What is for services only is refused to people before it is read.
                expected = Reason.ACCESS_DENIED if method.name in FOR_SERVICES else Reason.MALFORMED_FRAME
                assert error.reason is expected, method.name


async def test_many_bad_beginnings(plane: Launched) -> None:
    async with channel(plane, "broker-1", "agent/babbler") as opened:
        for _ in range(200):
            raw = opened.stream_stream("/muster.broker.v1.BrokerService/Mailbox")()
            assert (await stream_end(raw, GARBAGE)).reason is Reason.MALFORMED_FRAME


# What is left.


async def test_the_plane_is_whole_after_all_this(
    plane: Launched, before: Usage, eventually: Eventually
) -> None:
    await assert_whole(plane, before, eventually)
