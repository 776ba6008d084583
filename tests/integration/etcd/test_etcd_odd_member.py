"""A member that answers in ways which a healthy etcd seldom shows: a fake server speaking etcd's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from services.common.clock import SystemClock
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.ops import WatchBatch
from services.common.etcd.session import EtcdSession
from services.common.tls import TlsIdentity
from tests.conftest import Certificates

PATIENCE_S = 10.0


class OddMember(
    rpc_pb2_grpc.KVServicer,  # type: ignore[misc]
    rpc_pb2_grpc.LeaseServicer,  # type: ignore[misc]
    rpc_pb2_grpc.WatchServicer,  # type: ignore[misc]
):
    """Answers from scripts: an exception's (code, text) aborts, "end" ends a stream, "hang" never answers."""

    def __init__(self) -> None:
        self.puts: list[tuple[grpc.StatusCode, str]] = []
        self.ranges: list[tuple[grpc.StatusCode, str]] = []
        # One script for each watch stream that is opened.
        self.watches: list[list[object]] = []
        self.watch_starts: list[int] = []
        self.renewals: list[object] = []
        self.puts_seen = 0

    async def Put(self, request: object, context: Any) -> object:
        self.puts_seen += 1
        if self.puts:
            await context.abort(*self.puts.pop(0))
        return rpc.PutResponse(header=rpc.ResponseHeader(revision=7))

    async def Range(self, request: object, context: Any) -> object:
        if self.ranges:
            await context.abort(*self.ranges.pop(0))
        return rpc.RangeResponse(header=rpc.ResponseHeader(revision=7))

    async def Watch(self, requests: AsyncIterator[object], context: Any) -> AsyncIterator[object]:
        created = await anext(aiter(requests))
        self.watch_starts.append(created.create_request.start_revision)  # type: ignore[attr-defined]
        yield rpc.WatchResponse(created=True)
        for step in self.watches.pop(0):
            if isinstance(step, tuple):
                await context.abort(*step)
            yield step
        if not self.watches:
            # The last script's stream stays open.
            await asyncio.Event().wait()

    async def LeaseGrant(self, request: object, context: object) -> object:
        return rpc.LeaseGrantResponse(ID=5, TTL=request.TTL)  # type: ignore[attr-defined]

    async def LeaseRevoke(self, request: object, context: object) -> object:
        return rpc.LeaseRevokeResponse()

    async def LeaseKeepAlive(self, requests: AsyncIterator[object], context: Any) -> AsyncIterator[object]:
        async for _ in requests:
            step = self.renewals.pop(0) if self.renewals else 3
            if isinstance(step, tuple):
                await context.abort(*step)
            elif step == "end":
                return
            elif step != "hang":
                yield rpc.LeaseKeepAliveResponse(ID=5, TTL=step)


@pytest.fixture
async def member(certificates: Certificates) -> AsyncIterator[tuple[OddMember, EtcdClient]]:
    odd = OddMember()
    server = grpc.aio.server()
    rpc_pb2_grpc.add_KVServicer_to_server(odd, server)
    rpc_pb2_grpc.add_LeaseServicer_to_server(odd, server)
    rpc_pb2_grpc.add_WatchServicer_to_server(odd, server)
    certificate, key = certificates.issue("service/etcd")
    identity = TlsIdentity(certificates.ca_path, certificate, key)
    port = server.add_secure_port("127.0.0.1:0", identity.server_credentials())
    tls = EtcdTls(certificates.ca_path, *certificates.issue("service/registry"))
    await server.start()
    async with EtcdClient([f"127.0.0.1:{port}"], tls, request_timeout_s=2.0) as client:
        yield odd, client
    await server.stop(None)


Member = tuple[OddMember, EtcdClient]


@pytest.mark.parametrize(
    ("code", "text", "reason", "definite"),
    [
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Reason.DISK_FULL, True),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Reason.PAYLOAD_TOO_LARGE, True),
        ("INVALID_ARGUMENT", "etcdserver: key is not provided", Reason.INTERNAL, False),
        ("NOT_FOUND", "etcdserver: requested lease not found", Reason.LOCK_LOST, True),
        ("UNAVAILABLE", "etcdserver: leader changed", Reason.STORE_UNAVAILABLE, False),
        ("UNAVAILABLE", "etcdserver: request timed out", Reason.STORE_UNAVAILABLE, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Reason.STORE_UNAVAILABLE, False),
        ("CANCELLED", "etcdserver: request cancelled", Reason.STORE_UNAVAILABLE, False),
        ("UNKNOWN", "anything", Reason.STORE_UNAVAILABLE, False),
    ],
)
async def test_a_refused_write_is_told_apart_from_a_doubtful_one_and_never_repeated(
    member: Member, code: str, text: str, reason: Reason, definite: bool
) -> None:
    odd, client = member
    odd.puts = [(grpc.StatusCode[code], text)]
    with pytest.raises(ServiceError) as caught:
        await client.put("/a", b"", lease_id=5)
    assert (caught.value.reason, caught.value.row.definite) == (reason, definite)
    assert odd.puts_seen == 1


async def test_a_read_is_repeated_until_its_time_is_up(member: Member) -> None:
    odd, client = member
    odd.ranges = [(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")] * 3
    assert await client.get("/a") is None
    odd.ranges = [(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")] * 1_000
    with pytest.raises(ServiceError) as caught:
        await client.get("/a")
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


def put_event(revision: int) -> object:
    return rpc.Event(
        type=rpc.Event.PUT, kv=rpc.KeyValue(key=b"/a", create_revision=revision, mod_revision=revision)
    )


def response(revision: int, *events: object, fragment: bool = False) -> object:
    return rpc.WatchResponse(
        header=rpc.ResponseHeader(revision=revision), events=list(events), fragment=fragment
    )


@pytest.mark.parametrize(
    "ending",
    [
        (grpc.StatusCode.CANCELLED, "etcdserver: watch canceled"),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
        rpc.WatchResponse(canceled=True, cancel_reason="etcdserver: mvcc: future revision"),
    ],
)
async def test_a_watch_that_is_ended_resumes_where_it_was(member: Member, ending: object) -> None:
    odd, client = member
    odd.watches = [
        [response(5, put_event(5)), response(9), ending],
        # Half of a batch is lost with its stream.
        [response(12, put_event(12), fragment=True), ending],
        [
            response(12, put_event(12), fragment=True),
            response(12, put_event(12)),
            response(13, put_event(13)),
        ],
    ]
    async with client.watch("/", from_revision=3) as watch:
        batches: list[WatchBatch] = []
        while len(batches) < 4:
            batches.append(await asyncio.wait_for(anext(watch), PATIENCE_S))
    assert [(batch.revision, len(batch.events)) for batch in batches] == [(5, 1), (9, 0), (12, 2), (13, 1)]
    # After progress up to 9 nothing before 10 is asked for again.
    assert odd.watch_starts == [3, 10, 10]


async def test_a_renewal_survives_streams_that_end_and_members_that_hang(member: Member) -> None:
    odd, client = member
    odd.renewals = ["end", (grpc.StatusCode.CANCELLED, "gone"), "hang", 3]
    with client.keep_alive(5) as stream:
        for _ in range(3):
            with pytest.raises(ServiceError) as caught:
                await stream.renew(0.5)
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
        assert await stream.renew(5) == 3


async def test_closing_the_client_ends_what_waits_on_it_with_an_error(member: Member) -> None:
    odd, client = member
    odd.watches = [[]]
    session = await EtcdSession.open(client, SystemClock(), ttl_s=600)
    watch = client.watch("/", from_revision=1)
    waiting = asyncio.create_task(anext(watch))
    async with asyncio.timeout(PATIENCE_S):
        while not odd.watch_starts:
            await asyncio.sleep(0)
    await client.close()
    # Not CancelledError: a loop that follows etcd must not end in silence.
    with pytest.raises(ServiceError, match="closed"):
        await asyncio.wait_for(waiting, PATIENCE_S)
    with pytest.raises(ServiceError, match="closed"):
        await client.get("/a")
    with pytest.raises(ServiceError, match="closed"):
        await anext(watch)
    await session.close()


async def test_cancelling_a_task_is_still_cancelling(member: Member) -> None:
    odd, client = member
    odd.watches = [[]]
    waiting = asyncio.create_task(anext(client.watch("/", from_revision=1)))
    async with asyncio.timeout(PATIENCE_S):
        while not odd.watch_starts:
            await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
