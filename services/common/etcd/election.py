"""Election on etcd, as any etcd client understands it.

Method: etcd's `client/v3/concurrency/election.go`. A candidate writes `<prefix><lease in hex>` under its
lease; the key with the lowest create revision leads; every other candidate waits for the deletion of the
one just before it, so that a death wakes one candidate only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from services.common.clock import Clock
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.election import Leader, Leadership
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import CompactedError
from services.common.etcd.follow import Mirror, follow
from services.common.etcd.ops import Compare, Delete, Get, Put
from services.common.etcd.session import SESSION_TTL_S, EtcdSession

# Pause between tries while etcd is away, in milliseconds.
_RETRY_BASE_MS = 50
_RETRY_MAX_MS = 1_000


class EtcdElection:
    """One candidate; `services.common.election.Election` is the contract.

    Each candidacy has a session, hence a lease and a key, of its own.
    """

    def __init__(self, client: EtcdClient, clock: Clock, prefix: str, *, ttl_s: int = SESSION_TTL_S) -> None:
        if not prefix.endswith("/"):
            raise ValueError(f"election prefix {prefix!r} must end with '/'")
        self._client = client
        self._clock = clock
        self._prefix = prefix
        self._ttl_s = ttl_s
        # Set from winning until `resign` or the next campaign.
        self._candidacy: _Candidacy | None = None
        self._campaigning = False

    async def campaign(self, value: bytes) -> Leadership:
        """Wait until this candidate leads."""
        if self._campaigning or (self._candidacy is not None and self._candidacy.live):
            raise RuntimeError("this candidate campaigns or leads already")
        self._campaigning = True
        try:
            await self.resign()
            failures = 0
            while True:
                try:
                    candidacy = await self._stand(value)
                    if candidacy is not None:
                        self._candidacy = candidacy
                        return Leadership(candidacy.epoch, candidacy.key, candidacy)
                    failures = 0
                except ServiceError:
                    failures += 1
                pause_ms = backoff_ms(failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS)
                await asyncio.sleep(pause_ms / 1_000)
        finally:
            self._campaigning = False

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Yield the present leader, then every new one."""
        mirror = Mirror()
        told: Leader | None = None
        first = True
        async with contextlib.aclosing(follow(self._client, self._prefix)) as changes:
            async for change in changes:
                mirror.apply(change)
                oldest = min(mirror.kvs.values(), key=lambda kv: kv.create_revision, default=None)
                leader = None if oldest is None else Leader(oldest.value, oldest.create_revision)
                if first or leader != told:
                    first, told = False, leader
                    yield leader

    async def depose(self, leader: Leader) -> None:
        """Take the leadership of `leader` away; see `Election.depose`."""
        rows = await self._client.get_prefix(self._prefix)
        for kv in rows.kvs:
            if kv.create_revision == leader.epoch:
                # Guarded: nothing but this very candidacy ends, however long we took.
                await self._client.txn([Compare.created_at(kv.key, leader.epoch)], [Delete(kv.key)])

    async def resign(self) -> None:
        """Give up leadership."""
        candidacy, self._candidacy = self._candidacy, None
        if candidacy is not None:
            await candidacy.close()

    async def _stand(self, value: bytes) -> _Candidacy | None:
        """Return the candidacy that leads, or None when it ended while it waited."""
        session = await EtcdSession.open(self._client, self._clock, ttl_s=self._ttl_s)
        async with contextlib.AsyncExitStack() as stack:
            # However we leave, except by winning: revoking the lease takes the key with it.
            stack.push_async_callback(session.close)
            key = f"{self._prefix}{session.lease_id:x}"
            result = await self._client.txn([Compare.absent(key)], [Put(key, value, session.lease_id)])
            if not result.succeeded:
                return None
            # Commit point: the candidate is in the queue. If it dies now its lease takes it out again.
            candidacy = _Candidacy(session, key, result.revision)
            stack.push_async_callback(candidacy.stop)
            waiting = asyncio.create_task(self._wait_turn(result.revision))
            lost = asyncio.create_task(candidacy.lost.wait())
            try:
                await asyncio.wait((waiting, lost), return_when=asyncio.FIRST_COMPLETED)
                if not candidacy.live:
                    return None
                waiting.result()
            finally:
                await _cancel(waiting, lost)
            stack.pop_all()
            return candidacy

    async def _wait_turn(self, epoch: int) -> None:
        """Return when no candidate that came before `epoch` is left."""
        before_us = Get(self._prefix, prefix=True, limit=1, order="newest", create_revision_max=epoch - 1)
        while True:
            rows = await self._client.read(before_us)
            if rows.first is None:
                return
            await _wait_deleted(self._client, rows.first.key, rows.revision + 1)


class _Candidacy:
    """One key in the queue; lost when its session is, or when somebody deletes the key (`etcdctl del`)."""

    def __init__(self, session: EtcdSession, key: str, epoch: int) -> None:
        self.key = key
        self.epoch = epoch
        self.lost = asyncio.Event()
        self._session = session
        self._watching = asyncio.create_task(self._wait_end(), name=f"candidacy-{epoch}")

    @property
    def live(self) -> bool:
        return not self.lost.is_set() and self._session.live

    async def close(self) -> None:
        """Leave the queue."""
        await self.stop()
        await self._session.close()

    async def stop(self) -> None:
        """Stop watching the key."""
        self.lost.set()
        await _cancel(self._watching)

    async def _wait_end(self) -> None:
        deleted = asyncio.create_task(_wait_deleted(self._session.client, self.key, self.epoch + 1))
        expired = asyncio.create_task(self._session.lost.wait())
        try:
            await asyncio.wait((deleted, expired), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.lost.set()
            await _cancel(deleted, expired)


async def _wait_deleted(client: EtcdClient, key: str, from_revision: int) -> None:
    """Return when `key` is deleted at `from_revision` or later, or its absence is seen."""
    while True:
        try:
            async with client.watch(key, from_revision=from_revision, prefix=False) as watch:
                async for batch in watch:
                    if any(event.deleted for event in batch.events):
                        return
        except CompactedError:
            rows = await client.read(Get(key))
            if rows.first is None:
                return
            from_revision = rows.revision + 1


async def _cancel(*running: asyncio.Task[Any]) -> None:
    """Cancel what runs and wait for it; results are read by those who want them."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
