"""An asyncio client of etcd v3: transactions, reads, watches and leases.

Own channel, generated stubs from `aetcd`: its client knows one endpoint and retries on its own terms.

Consistency: reads are linearizable. Durability: when a write returns, a majority has it on disk.
Errors: `ServiceError`; STORE_UNAVAILABLE is indefinite (the write may have happened). A call waits for a
member that is away (a restart) until its timeout; reads, which have no effect, are tried again until then,
writes never.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from aetcd import rpc
from grpc.aio import AioRpcError, UsageError

from services.common.etcd import messages
from services.common.etcd.channel import METADATA, PAGE_KEYS, EtcdTls, cancelled_from_outside, open_channel
from services.common.etcd.errors import closed, from_rpc_error
from services.common.etcd.keepalive import KeepAlive
from services.common.etcd.ops import (
    TXN_OPERATIONS_MAX,
    Compare,
    Delete,
    Get,
    KeyValue,
    Lease,
    LeaseState,
    MemberState,
    Operation,
    Put,
    Rows,
    TxnResult,
    decode_key,
)
from services.common.etcd.watch import Watch

# etcd's own limit for a request is 5 s plus its election timeouts; ours is shorter so that callers, which
# have deadlines of their own, hear of a stalled etcd first.
REQUEST_TIMEOUT_S = 5.0
_TXN_METHOD = "/etcdserverpb.KV/Txn"
# Pause between tries of a read, in seconds.
_READ_RETRY_S = 0.05
_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE})


class EtcdClient:
    """One channel to all members. Make it inside the event loop that uses it; close it when done."""

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: EtcdTls,
        *,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.request_timeout_s = request_timeout_s
        self._channel = open_channel(endpoints, tls)
        self._kv = rpc.KVStub(self._channel)
        # The stub would build the request's messages; see `messages.encode_txn`.
        self._txn = self._channel.unary_unary(
            _TXN_METHOD, request_serializer=None, response_deserializer=rpc.TxnResponse.FromString
        )
        self._lease = rpc.LeaseStub(self._channel)
        self._watch = rpc.WatchStub(self._channel)
        self._maintenance = rpc.MaintenanceStub(self._channel)

    def __repr__(self) -> str:
        return f"<EtcdClient {','.join(self.endpoints)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls under way and later ones fail with STORE_UNAVAILABLE."""
        await self._channel.close(grace=None)

    # Transactions and reads.

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> TxnResult:
        """Run `success` if every condition holds, else `failure`, atomically.

        Raises ValueError for a branch of more than `TXN_OPERATIONS_MAX` operations: the caller must split.
        """
        if max(len(compares), len(success), len(failure)) > TXN_OPERATIONS_MAX:
            raise ValueError(f"an etcd transaction takes at most {TXN_OPERATIONS_MAX} operations; split it")
        request = messages.encode_txn(compares, success, failure)
        lease_id = next((op.lease_id for op in success if isinstance(op, Put) and op.lease_id), 0)
        response = await self._write(self._txn, request, doing="transaction", lease_id=lease_id)
        ran = success if response.succeeded else failure
        answers = messages.answers(ran, response)
        return TxnResult(response.succeeded, response.header.revision, answers)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Write one key without a condition; return the revision of the write."""
        request = messages.put_message(Put(key, value, lease_id))
        response = await self._write(self._kv.Put, request, doing=f"put {key}", lease_id=lease_id)
        return int(response.header.revision)

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete one key, or all that start with it, without a condition; return how many went."""
        request = messages.delete_message(Delete(key, prefix))
        response = await self._write(self._kv.DeleteRange, request, doing=f"delete {key}")
        return int(response.deleted)

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """Return one key as of `revision` (0: now), or None."""
        return (await self.read(Get(key), revision=revision)).first

    async def read(self, get: Get, *, revision: int = 0) -> Rows:
        """Return what one `Get` finds as of `revision` (0: now)."""
        request = messages.get_message(get, revision)
        response = await self._read(self._kv.Range, request, doing=f"read {get.key}")
        return messages.rows(response, revision or response.header.revision)

    async def get_prefix(self, prefix: str, *, revision: int = 0) -> Rows:
        """Return every key that starts with `prefix`, all as of one revision, in key order."""
        found: list[KeyValue] = []
        async for page in self.pages(prefix, revision=revision):
            found.extend(page.kvs)
            revision = page.revision
        return Rows(revision, tuple(found))

    async def pages(
        self, prefix: str, *, revision: int = 0, page_keys: int = PAGE_KEYS
    ) -> AsyncIterator[Rows]:
        """Yield the keys that start with `prefix` in pages, all as of one revision; at least one page.

        Raises `CompactedError` when etcd compacts that revision in the middle.
        """
        start, end = messages.range_of(prefix, prefix=True)
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=page_keys, revision=revision)
            response = await self._read(self._kv.Range, request, doing=f"read {prefix}")
            revision = revision or response.header.revision
            yield messages.rows(response, revision)
            if not response.more:
                return
            start = response.kvs[-1].key + b"\0"

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        await self._write(self._kv.Compact, rpc.CompactionRequest(revision=revision), doing="compact")

    # Watches.

    def watch(self, key: str, *, from_revision: int, prefix: bool = True) -> Watch:
        """Return an iterator of batches of changes since `from_revision`, which is included.

        Goes on for ever over lost links; raises `CompactedError` when the history is gone. Close it, or
        use `async with`.
        """
        start, end = messages.range_of(key, prefix=prefix)
        return Watch(self._watch, start, end, from_revision)

    # Leases.

    async def lease_grant(self, ttl_s: int) -> Lease:
        """Return a new lease; etcd raises a TTL below its own minimum."""
        response = await self._write(
            self._lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s, ID=0), doing="grant a lease"
        )
        return Lease(response.ID, response.TTL)

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete what hangs on it; raises `LeaseGoneError` when it has ended already."""
        request = rpc.LeaseRevokeRequest(ID=lease_id)
        await self._write(self._lease.LeaseRevoke, request, doing="revoke a lease", lease_id=lease_id)

    async def lease_state(self, lease_id: int) -> LeaseState:
        """Return the time that a lease has left, and its keys."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
        response = await self._read(self._lease.LeaseTimeToLive, request, doing="look at a lease")
        return LeaseState(response.TTL, response.grantedTTL, tuple(decode_key(key) for key in response.keys))

    def keep_alive(self, lease_id: int) -> KeepAlive:
        """Return a stream that renews one lease on demand."""
        return KeepAlive(self._lease, lease_id)

    # Health.

    async def state(self) -> MemberState:
        """Return the state of one member."""
        response = await self._read(self._maintenance.Status, rpc.StatusRequest(), doing="ask for its state")
        return MemberState(response.version, response.leader, response.dbSize)

    async def _write(
        self, method: Callable[..., Awaitable[Any]], request: Any, *, doing: str, lease_id: int = 0
    ) -> Any:
        try:
            return await self._call(method, request, self.request_timeout_s, doing=doing)
        except AioRpcError as error:
            raise from_rpc_error(error, doing=doing, lease_id=lease_id) from error

    async def _read(self, method: Callable[..., Awaitable[Any]], request: Any, *, doing: str) -> Any:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.request_timeout_s
        while True:
            try:
                return await self._call(method, request, give_up - loop.time(), doing=doing)
            except AioRpcError as error:
                if error.code() not in _AGAIN or give_up - loop.time() <= _READ_RETRY_S:
                    raise from_rpc_error(error, doing=doing) from error
            await asyncio.sleep(_READ_RETRY_S)

    async def _call(
        self, method: Callable[..., Awaitable[Any]], request: Any, timeout_s: float, *, doing: str
    ) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=METADATA, wait_for_ready=True)
        except UsageError as error:
            raise closed(doing) from error
        except asyncio.CancelledError as error:
            if cancelled_from_outside():
                raise
            raise closed(doing) from error
