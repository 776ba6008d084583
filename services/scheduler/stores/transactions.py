"""A batch cut into etcd transactions, in an order from which recovery is safe at every point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.common.core.ids import CollaborationId
from services.common.etcd.ops import TXN_OPERATIONS_MAX, Delete, Get, Operation, Put
from services.scheduler.core.model import InstanceKey
from services.scheduler.core.records import StoredLock
from services.scheduler.store import Batch
from services.scheduler.stores.layout import Layout
from services.scheduler.wire import records

#: Bytes of one transaction, below etcd's limit for a request (1.5 MiB) with room for one more value.
TXN_BYTES_MAX = 1024 * 1024


@dataclass(slots=True)
class Transaction:
    """Operations that are committed together, and the new locks among them."""

    operations: list[Operation] = field(default_factory=list)
    #: Index of the `Get` that shows who holds the resource of a new lock.
    locks: list[tuple[int, StoredLock]] = field(default_factory=list)
    size_bytes: int = 0


#: Transactions that must be committed one after the other.
Lane = list[Transaction]


@dataclass(frozen=True, slots=True)
class _Step:
    """What must not be torn apart: one write, or an attempt with its locks."""

    operations: tuple[Operation, ...]
    locks: tuple[tuple[int, StoredLock], ...]
    size_bytes: int


def cut(batch: Batch, layout: Layout, leases: Mapping[InstanceKey, int]) -> list[Lane]:
    """Return lanes of transactions; lanes may be committed side by side.

    Collaborations without locks are independent of each other and packed together. Everything that touches
    locks shares one lane, deletions first: no reader ever sees a claim before the one that it follows.
    """
    locks_of: dict[CollaborationId, list[StoredLock]] = {}
    for lock in batch.put_locks:
        if lock.attempt is not None:
            locks_of.setdefault(lock.attempt.collaboration_id, []).append(lock)
    locking: Lane = []
    packed: Lane = []
    lanes: list[Lane] = []
    for resource, claim_id in batch.deleted_locks:
        _append(locking, _step(Delete(layout.lock(resource, claim_id))))
    for collaboration_id, steps in _groups(batch, layout, leases, locks_of):
        size = sum(step.size_bytes for step in steps)
        count = sum(len(step.operations) for step in steps)
        if collaboration_id in locks_of:
            lane = locking
        elif count > TXN_OPERATIONS_MAX or size > TXN_BYTES_MAX:
            lane = []
            lanes.append(lane)
        else:
            lane = packed
            if not packed or not _fits(packed[-1], count, size):
                packed.append(Transaction())
        for step in steps:
            _append(lane, step)
    for lock in batch.put_locks:
        if lock.attempt is None:
            _append(locking, _lock_step(layout, [lock], leases))
    lanes += [[transaction] for transaction in packed]
    return [lane for lane in [locking, *lanes] if lane]


def _groups(
    batch: Batch,
    layout: Layout,
    leases: Mapping[InstanceKey, int],
    locks_of: Mapping[CollaborationId, list[StoredLock]],
) -> Iterator[tuple[CollaborationId, list[_Step]]]:
    """Yield each collaboration's writes in their order: specifications, tasks with locks, itself."""
    groups: dict[CollaborationId, list[_Step]] = {}
    for collaboration_id, spec in batch.specs.items():
        groups[collaboration_id] = [
            _step(Put(layout.spec(collaboration_id, number), part))
            for number, part in enumerate(records.encode_specs(spec))
        ]
    placed: dict[tuple[CollaborationId, str], list[StoredLock]] = {}
    for locks in locks_of.values():
        for lock in locks:
            if lock.attempt is not None:
                placed.setdefault(lock.attempt.task_key, []).append(lock)
    for key, task in batch.tasks.items():
        put = Put(layout.task(*key), records.encode_task(task))
        step = _lock_step(layout, placed.pop(key, []), leases, put)
        groups.setdefault(key.collaboration_id, []).append(step)
    for (collaboration_id, _), locks in placed.items():
        # Taken by the code of an attempt whose record does not change with it.
        groups.setdefault(collaboration_id, []).append(_lock_step(layout, locks, leases))
    for collaboration_id, record in batch.collaborations.items():
        put = Put(layout.collaboration(collaboration_id), records.encode_collaboration(record))
        groups.setdefault(collaboration_id, []).append(_step(put))
    for collaboration_id in batch.forgotten:
        groups[collaboration_id] = [
            # Its own record first: what is left without it is an orphan that the next `load` deletes.
            _step(Delete(layout.collaboration(collaboration_id))),
            _step(Delete(layout.below(collaboration_id), prefix=True)),
        ]
    yield from groups.items()


def _step(operation: Operation) -> _Step:
    return _Step((operation,), (), _size(operation))


def _lock_step(
    layout: Layout, locks: list[StoredLock], leases: Mapping[InstanceKey, int], *first: Operation
) -> _Step:
    operations: list[Operation] = [*first]
    shown: list[tuple[int, StoredLock]] = []
    for lock in locks:
        key = layout.lock(lock.resource, lock.claim_id)
        operations.append(Put(key, records.encode_lock(lock), leases[lock.instance]))
    for lock in locks:
        shown.append((len(operations), lock))
        operations.append(Get(layout.resource(lock.resource), prefix=True, order="oldest"))
    return _Step(tuple(operations), tuple(shown), sum(_size(operation) for operation in operations))


def _size(operation: Operation) -> int:
    value = len(operation.value) if isinstance(operation, Put) else 0
    return len(operation.key) + value + 32


def _fits(transaction: Transaction, count: int, size_bytes: int) -> bool:
    return (
        len(transaction.operations) + count <= TXN_OPERATIONS_MAX
        and transaction.size_bytes + size_bytes <= TXN_BYTES_MAX
    )


def _append(lane: Lane, step: _Step) -> None:
    if not lane or not _fits(lane[-1], len(step.operations), step.size_bytes):
        lane.append(Transaction())
    transaction = lane[-1]
    start = len(transaction.operations)
    transaction.operations += step.operations
    transaction.locks += ((start + index, lock) for index, lock in step.locks)
    transaction.size_bytes += step.size_bytes
