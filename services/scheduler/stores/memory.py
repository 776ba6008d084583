"""The reference implementation, for tests and simulation: a dictionary with etcd's rules about keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from services.common.core.ids import CollaborationId, ResourceName, TaskId
from services.common.election import Leadership
from services.scheduler.core.events import ForeignLock, LockWritten
from services.scheduler.core.model import InstanceKey, TaskKey
from services.scheduler.core.prediction.cells import Learned, LearnedKey
from services.scheduler.core.records import (
    CollaborationRecord,
    SpecRecord,
    StoredCollaboration,
    StoredLock,
    TaskRecord,
)
from services.scheduler.store import Batch, LeadershipLostError, LockKeys, Stored

#: (resource, claim id)
LockKey = tuple[ResourceName, str]


@dataclass(eq=False)
class MemoryPlane:
    """What several replicas' stores share; what etcd is to `EtcdStore`. Tests play the other programs."""

    #: Whether a leadership is the newest.
    holds: Callable[[Leadership], bool]
    revision: int = 0
    specs: dict[CollaborationId, SpecRecord] = field(default_factory=dict)
    collaborations: dict[CollaborationId, CollaborationRecord] = field(default_factory=dict)
    tasks: dict[TaskKey, TaskRecord] = field(default_factory=dict)
    locks: dict[LockKey, StoredLock | ForeignLock] = field(default_factory=dict)
    learned: dict[LearnedKey, Learned] = field(default_factory=dict)
    watchers: list[asyncio.Queue[LockKeys]] = field(default_factory=list)

    def put_foreign(self, resource: str, claim_id: str = "foreign") -> ForeignLock:
        """Let another program lock a resource."""
        self.revision += 1
        lock = ForeignLock(ResourceName(resource), claim_id, self.revision)
        self.locks[lock.resource, claim_id] = lock
        self.tell(LockKeys(foreign=(lock,)))
        return lock

    def delete(self, key: LockKey) -> None:
        """Let a key be deleted, by whoever."""
        self.revision += 1
        if self.locks.pop(key, None) is not None:
            self.tell(LockKeys(deleted=(key,)))

    def expire(self, instance: InstanceKey) -> None:
        """Let an instance's lease end."""
        for key, lock in [*self.locks.items()]:
            if isinstance(lock, StoredLock) and lock.instance == instance:
                self.delete(key)

    def tell(self, keys: LockKeys) -> None:
        """Let every watcher know."""
        for watcher in self.watchers:
            watcher.put_nowait(keys)


class MemoryStore:
    """See `services.scheduler.store.SchedulerStore`; a commit is one transaction."""

    def __init__(self, plane: MemoryPlane) -> None:
        self._plane = plane
        self._known: set[LockKey] = set()

    async def load(self, leadership: Leadership) -> Stored:
        """See `SchedulerStore.load`."""
        self._guard(leadership)
        plane = self._plane
        self._known = set(plane.locks)
        for collaboration_id in [*plane.specs]:
            if collaboration_id not in plane.collaborations:
                self._forget(collaboration_id)
        tasks: dict[CollaborationId, list[TaskRecord]] = {}
        for key, task in plane.tasks.items():
            tasks.setdefault(key.collaboration_id, []).append(task)
        return Stored(
            tuple(
                StoredCollaboration(plane.specs[name], record, tuple(tasks.get(name, ())))
                for name, record in plane.collaborations.items()
            ),
            tuple(lock for lock in plane.locks.values() if isinstance(lock, StoredLock)),
            tuple(lock for lock in plane.locks.values() if isinstance(lock, ForeignLock)),
            tuple(plane.learned.items()),
        )

    async def commit(self, batch: Batch, leadership: Leadership) -> tuple[LockWritten, ...]:
        """See `SchedulerStore.commit`."""
        self._guard(leadership)
        plane = self._plane
        plane.revision += 1
        for key in batch.deleted_locks:
            if plane.locks.pop(key, None) is not None:
                plane.tell(LockKeys(deleted=(key,)))
        plane.specs.update(batch.specs)
        plane.tasks.update(batch.tasks)
        plane.collaborations.update(batch.collaborations)
        for collaboration_id in batch.forgotten:
            self._forget(collaboration_id)
        for learned, value in batch.learned.items():
            if value is None:
                plane.learned.pop(learned, None)
            else:
                plane.learned[learned] = value
        requests: dict[str, list[StoredLock]] = {}
        for lock in batch.put_locks:
            name = (lock.resource, lock.claim_id)
            before = plane.locks.get(name)
            revision = before.revision if isinstance(before, StoredLock) else plane.revision
            plane.locks[name] = lock._replace(revision=revision)
            requests.setdefault(lock.claim_id, []).append(lock._replace(revision=revision))
        return tuple(self._judge(claim_id, locks) for claim_id, locks in requests.items())

    async def watch_locks(self) -> AsyncGenerator[LockKeys, None]:
        """See `SchedulerStore.watch_locks`."""
        queue: asyncio.Queue[LockKeys] = asyncio.Queue()
        self._plane.watchers.append(queue)
        there = tuple(lock for lock in self._plane.locks.values() if isinstance(lock, ForeignLock))
        gone = tuple(sorted(self._known - set(self._plane.locks)))
        try:
            if there or gone:
                yield LockKeys(there, gone)
            while True:
                yield await queue.get()
        finally:
            self._plane.watchers.remove(queue)

    def end_lease(self, instance: InstanceKey) -> None:
        """See `SchedulerStore.end_lease`."""
        self._plane.expire(instance)

    async def keep_leases(self) -> None:
        """See `SchedulerStore.keep_leases`: leases in memory end only when a test ends them."""
        await asyncio.Event().wait()

    def _guard(self, leadership: Leadership) -> None:
        if not self._plane.holds(leadership):
            raise LeadershipLostError

    def _forget(self, collaboration_id: CollaborationId) -> None:
        self._plane.specs.pop(collaboration_id, None)
        self._plane.collaborations.pop(collaboration_id, None)
        for key in [key for key in self._plane.tasks if key.collaboration_id == collaboration_id]:
            del self._plane.tasks[TaskKey(key.collaboration_id, TaskId(key.task_id))]

    def _judge(self, claim_id: str, locks: list[StoredLock]) -> LockWritten:
        names = {lock.resource for lock in locks}
        older = tuple(
            other
            for other in self._plane.locks.values()
            if isinstance(other, ForeignLock)
            and other.resource in names
            and other.create_revision < locks[0].revision
        )
        return LockWritten(claim_id, locks[0].revision, older)
