"""The store on etcd: every write in a transaction that is guarded by the leadership's own key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from google.protobuf.message import DecodeError

from services.common import logs
from services.common.core.ids import CollaborationId, TaskId
from services.common.election import Leadership
from services.common.etcd.client import EtcdClient
from services.common.etcd.errors import LeaseGoneError
from services.common.etcd.follow import Snapshot, follow
from services.common.etcd.ops import Delete, KeyValue, Operation, TxnResult
from services.scheduler.core.events import ForeignLock, LockWritten
from services.scheduler.core.model import InstanceKey
from services.scheduler.core.prediction.cells import Learned, LearnedKey
from services.scheduler.core.records import StoredCollaboration, StoredLock, TaskRecord
from services.scheduler.store import Batch, LeadershipLostError, LockKeys, Stored
from services.scheduler.stores.layout import Layout
from services.scheduler.stores.leases import LockLeases
from services.scheduler.stores.transactions import Lane, cut
from services.scheduler.wire import learned, records

_log = logs.get("scheduler.store")
#: Deletions of orphans in one transaction.
_ORPHANS_MAX = 64


class EtcdStore:
    """See `services.scheduler.store.SchedulerStore`; one object serves one leadership after another."""

    def __init__(self, client: EtcdClient, key_prefix: str, *, lock_ttl_s: int) -> None:
        self._client = client
        self._layout = Layout(key_prefix)
        self._lock_ttl_s = lock_ttl_s
        self._leases = LockLeases(client, lock_ttl_s)
        # Collaborations that may have keys below their own: found there by `load`, or written since.
        self._spread: set[CollaborationId] = set()
        # Keys of locks as `load` found them.
        self._lock_keys: set[str] = set()

    async def load(self, leadership: Leadership) -> Stored:
        """See `SchedulerStore.load`."""
        layout = self._layout
        # The guard is read in a transaction of its own; from its revision on everything is read as of then.
        guarded = await self._client.txn([leadership.guard], [], [])
        if not guarded.succeeded:
            raise LeadershipLostError
        revision = guarded.revision
        headers = (await self._client.get_prefix(layout.collaborations, revision=revision)).kvs
        below: dict[CollaborationId, list[KeyValue]] = {}
        async for page in self._client.pages(layout.tasks, revision=revision):
            for kv in page.kvs:
                if (parsed := layout.parse_task(kv.key)) is not None:
                    below.setdefault(parsed[0], []).append(kv)
        self._spread = set(below)
        found = [self._read_collaboration(kv, below) for kv in headers]
        await self._delete_orphans([*below], leadership)
        self._spread.difference_update(below)
        self._leases = LockLeases(self._client, self._lock_ttl_s)
        locks, foreign = await self._load_locks(revision)
        stored = tuple(collaboration for collaboration in found if collaboration is not None)
        rows = tuple([row async for row in self._load_learned(revision)])
        return Stored(stored, tuple(locks), tuple(foreign), rows)

    async def _load_learned(self, revision: int) -> AsyncIterator[tuple[LearnedKey, Learned]]:
        async for page in self._client.pages(self._layout.learned, revision=revision):
            for kv in page.kvs:
                if (key := self._layout.parse_learned(kv.key)) is None:
                    continue
                try:
                    yield key, learned.decode(key, kv.value)
                except DecodeError as error:
                    # An estimate can be learned again; that one is lost must not keep anybody from leading.
                    _log.error("a learned record in etcd can not be read", key=kv.key, error=error)

    def _read_collaboration(
        self, header: KeyValue, below: dict[CollaborationId, list[KeyValue]]
    ) -> StoredCollaboration | None:
        """Return one collaboration, None when its records can not be read; takes its keys out of `below`."""
        collaboration_id = CollaborationId(header.key.removeprefix(self._layout.collaborations))
        parts: list[bytes] = []
        tasks: list[TaskRecord] = []
        keys = below.pop(collaboration_id, ())
        try:
            if (small := records.decode_small(collaboration_id, header.value)) is not None:
                return small
            for kv in keys:
                parsed = self._layout.parse_task(kv.key)
                if parsed is not None and parsed[1] == "spec":
                    parts.append(kv.value)
                elif parsed is not None:
                    tasks.append(records.decode_task(TaskId(parsed[2]), kv.value))
            return StoredCollaboration(
                records.decode_specs(collaboration_id, parts),
                records.decode_collaboration(collaboration_id, header.value),
                tuple(tasks),
            )
        except (DecodeError, ValueError, IndexError) as error:
            # One damaged record must not keep every replica from leading. Its keys are left for a person.
            _log.error("a collaboration in etcd can not be read", key=header.key, error=error)
            return None

    async def _delete_orphans(self, orphans: list[CollaborationId], leadership: Leadership) -> None:
        """Delete what a leader wrote of collaborations whose own record it did not get to."""
        for start in range(0, len(orphans), _ORPHANS_MAX):
            deletions: list[Operation] = [
                Delete(self._layout.below(orphan), prefix=True)
                for orphan in orphans[start : start + _ORPHANS_MAX]
            ]
            await self._guarded(deletions, leadership)

    async def _load_locks(self, revision: int) -> tuple[list[StoredLock], list[ForeignLock]]:
        locks: list[StoredLock] = []
        foreign: list[ForeignLock] = []
        kvs = (await self._client.get_prefix(self._layout.locks, revision=revision)).kvs
        self._lock_keys = {kv.key for kv in kvs}
        for kv in kvs:
            found = self._read_lock(kv)
            if isinstance(found, StoredLock):
                locks.append(found)
                self._leases.adopt(found.instance, kv.lease_id)
            elif found is not None:
                foreign.append(found)
        return locks, foreign

    def _read_lock(self, kv: KeyValue) -> StoredLock | ForeignLock | None:
        parsed = self._layout.parse_lock(kv.key)
        if parsed is None:
            return None
        resource, claim_id = parsed
        ours = records.decode_lock(resource, claim_id, kv.value, kv.create_revision)
        # A key of our shape that hangs on no lease was not put by us.
        if ours is not None and kv.lease_id:
            return ours
        return ForeignLock(resource, claim_id, kv.create_revision)

    async def commit(self, batch: Batch, leadership: Leadership) -> tuple[LockWritten, ...]:
        """See `SchedulerStore.commit`."""
        instances = [*dict.fromkeys(lock.instance for lock in batch.put_locks)]
        await self._leases.ensure(instances)
        lanes = cut(batch, self._layout, self._leases.ids, self._spread)
        try:
            written = await self._run_lanes(lanes, leadership)
        except LeaseGoneError:
            # Definite for that transaction: a lease ran out while nobody could renew it. The others may be
            # there; all of them are idempotent.
            await self._leases.drop_ended(instances)
            await self._leases.ensure(instances)
            lanes = cut(batch, self._layout, self._leases.ids, self._spread)
            written = await self._run_lanes(lanes, leadership)
        self._spread.difference_update(batch.forgotten)
        return tuple(written)

    async def _run_lanes(self, lanes: list[Lane], leadership: Leadership) -> list[LockWritten]:
        if len(lanes) == 1:
            return await self._run_lane(lanes[0], leadership)
        # Side by side, so that etcd's own batching gets all of them into one sync. Every lane is waited for:
        # after an error none must still be on its way when the caller decides what to do.
        runs = [self._run_lane(lane, leadership) for lane in lanes]
        results = await asyncio.gather(*runs, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        lost = next((error for error in errors if isinstance(error, LeadershipLostError)), None)
        if errors:
            raise lost or errors[0]
        return [lock for result in results if isinstance(result, list) for lock in result]

    async def _run_lane(self, lane: Lane, leadership: Leadership) -> list[LockWritten]:
        shown: dict[str, list[tuple[StoredLock, tuple[KeyValue, ...]]]] = {}
        for transaction in lane:
            result = await self._guarded(transaction.operations, leadership)
            for index, lock in transaction.locks:
                shown.setdefault(lock.claim_id, []).append((lock, result.rows(index).kvs))
        return [self._judge(claim_id, rows) for claim_id, rows in shown.items()]

    async def _guarded(self, operations: list[Operation], leadership: Leadership) -> TxnResult:
        result = await self._client.txn([leadership.guard], operations)
        if not result.succeeded:
            raise LeadershipLostError
        # Commit point: from here on a new leader finds these writes.
        return result

    def _judge(self, claim_id: str, rows: list[tuple[StoredLock, tuple[KeyValue, ...]]]) -> LockWritten:
        """Say which token a request's keys have, and which keys of other programs came before them."""
        revision = 0
        older: list[ForeignLock] = []
        for lock, kvs in rows:
            key = self._layout.lock(lock.resource, claim_id)
            # Its own create revision, not the transaction's: the same one when a commit is repeated.
            revision = next(kv.create_revision for kv in kvs if kv.key == key)
            for kv in kvs:
                found = self._read_lock(kv)
                if isinstance(found, ForeignLock) and found.create_revision < revision:
                    older.append(found)
        return LockWritten(claim_id, revision, tuple(older))

    async def watch_locks(self) -> AsyncGenerator[LockKeys, None]:
        """See `SchedulerStore.watch_locks`."""
        known = set(self._lock_keys)
        async with contextlib.aclosing(follow(self._client, self._layout.locks)) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    there = [*change.kvs]
                    gone = sorted(known - {kv.key for kv in there})
                    known = {kv.key for kv in there}
                else:
                    there = [event.kv for event in change.events if not event.deleted]
                    gone = [event.kv.key for event in change.events if event.deleted]
                    known.update(kv.key for kv in there)
                    known.difference_update(gone)
                keys = self._keys(there, gone)
                if keys.foreign or keys.deleted:
                    yield keys

    def _keys(self, there: list[KeyValue], gone: list[str]) -> LockKeys:
        foreign = (self._read_lock(kv) for kv in there)
        parsed = (self._layout.parse_lock(key) for key in gone)
        return LockKeys(
            tuple(lock for lock in foreign if isinstance(lock, ForeignLock)),
            tuple(key for key in parsed if key is not None),
        )

    def end_lease(self, instance: InstanceKey) -> None:
        """See `SchedulerStore.end_lease`."""
        self._leases.end(instance)

    async def keep_leases(self) -> None:
        """See `SchedulerStore.keep_leases`."""
        await self._leases.run()
