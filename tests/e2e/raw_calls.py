"""Calls to a running plane without the library in between, and what they are refused with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, cast

import grpc
import pytest
from google.protobuf import descriptor_pool
from muster.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from muster.broker.v1 import broker_service_pb2 as broker_pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1 import envelope_pb2
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from agent_client import (
    Client,
)
from services.common.core.errors import ServiceError
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.tls import TlsIdentity
from tests.harness.launched import Launched

PATIENCE_S = 15.0
REPLICAS = ("registry-1", "broker-1", "scheduler-1", "scheduler-2", "audit-1")
PACKAGES = {name: f"muster.{name}.v1.{name.title()}Service" for name in ("registry", "broker", "audit")}
PACKAGES["scheduler"] = "muster.scheduler.v1.SchedulerService"
STUBS: Mapping[str, Any] = {
    "registry": RegistryServiceStub,
    "broker": BrokerServiceStub,
    "scheduler": SchedulerServiceStub,
    "audit": AuditServiceStub,
}
UPDATE = envelope_pb2.MESSAGE_TYPE_STATUS_UPDATE
GARBAGE = b"\xff\xff\xff\xff no message"


def service_of(replica: str) -> str:
    return replica.rpartition("-")[0]


async def leader(plane: Launched) -> str:
    async with Client(home=plane.home) as client:
        return (await client.services()).coordinator.replica_id


@contextlib.asynccontextmanager
async def channel(plane: Launched, replica: str, who: str | TlsIdentity) -> AsyncIterator[Any]:
    tls = plane.tls(who) if isinstance(who, str) else who
    opened = make_channel(plane.addresses[replica], tls, service_of(replica))
    try:
        yield opened
    finally:
        await opened.close(None)


async def refusal(call: Awaitable[Any]) -> ServiceError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, PATIENCE_S)
    error = from_rpc_error(caught.value)
    assert caught.value.code().name == error.row.code
    assert_typed(caught.value)
    return error


def assert_typed(error: grpc.aio.AioRpcError) -> None:
    """The error carries ErrorInfo of ours, it was not made up here from gRPC's own code."""
    assert "grpc-status-details-bin" in dict(cast(Any, error.trailing_metadata())), error


async def stream_end(stream: Any, *frames: Any, close: bool = False) -> ServiceError:
    """Write frames, read all answers; return the error that the stream ends with."""

    async def talk() -> None:
        # The stream may end before all is written; what it ended with is then told by `read`.
        with contextlib.suppress(asyncio.InvalidStateError):
            for frame in frames:
                await stream.write(frame)
            if close:
                await stream.done_writing()
        while await stream.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass

    return await refusal(talk())


def stub(service: str, opened: Any) -> Any:
    """Return the generated stub; untyped, since the stubs' types do not know `read` and `write`."""
    return STUBS[service](opened)


def methods(replica: str) -> list[str]:
    """Return "/package.Service/Method" of each method of a replica's service."""
    service = descriptor_pool.Default().FindServiceByName(PACKAGES[service_of(replica)])
    return [f"/{service.full_name}/{method.name}" for method in service.methods]


async def invoke(opened: Any, method: str) -> None:
    """Call any method with an empty message, and read one answer.

    A stream gets no frame: it can be refused without one, and grpc.aio loses the status of a stream that the
    server ends while it is written to.
    """
    service, _, name = method.removeprefix("/").rpartition("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    if not described.client_streaming:
        await opened.stream_stream(method)(iter([b""])).read()
        return
    stream = opened.stream_stream(method)()
    try:
        await stream.read()
    finally:
        stream.cancel()


def mailbox_hello() -> broker_pb.MailboxRequest:
    return broker_pb.MailboxRequest(hello=broker_pb.MailboxHello(versions=[1], send_only=True))


async def answer_with(stream: Any, field: str) -> Any:
    """Return the next answer in which a repeated field is not empty."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await stream.read()
            assert answer is not grpc.aio.EOF, await stream.code()  # type: ignore[attr-defined]
            if getattr(answer, field):
                return answer
