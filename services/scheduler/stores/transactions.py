"""A batch cut into etcd transactions, in an order from which recovery is safe at every point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.core.ids import CollaborationId
from services.common.etcd.ops import TXN_OPERATIONS_MAX, Delete, Get, Operation, Put
from services.scheduler.core.model import InstanceKey, TaskKey
from services.scheduler.core.records import StoredLock, is_small
from services.scheduler.store import Batch
from services.scheduler.stores.layout import Layout
from services.scheduler.wire import learned, records

#: Bytes of one transaction, below etcd's limit for a request (1.5 MiB) with room for one more value.
TXN_BYTES_MAX = 1024 * 1024
#: Bytes that an operation costs beside its key and value, about.
_OVERHEAD_BYTES = 32


@dataclass(slots=True)
class Transaction:
    """Operations that are committed together, and the new locks among them."""

    operations: list[Operation] = field(default_factory=list)
    #: Index of the `Get` that shows who holds the resource of a new lock.
    locks: list[tuple[int, StoredLock]] = field(default_factory=list)
    size_bytes: int = 0

    def take(self, operations: Sequence[Operation], size_bytes: int) -> bool:
        """Append operations if they have room here; return whether they have."""
        if (
            len(self.operations) + len(operations) > TXN_OPERATIONS_MAX
            or self.size_bytes + size_bytes > TXN_BYTES_MAX
        ):
            return False
        self.operations += operations
        self.size_bytes += size_bytes
        return True


#: Transactions that must be committed one after the other.
Lane = list[Transaction]


def cut(
    batch: Batch, layout: Layout, leases: Mapping[InstanceKey, int], spread: set[CollaborationId]
) -> list[Lane]:
    """Return lanes of transactions; lanes may be committed side by side.

    Collaborations without locks are independent of each other and packed together; one that fills more than
    a transaction gets a lane of its own. Everything that touches locks shares one lane, deletions first: no
    reader ever sees a claim before the one that it follows.

    `spread` has the collaborations that may have more keys than their own; those of the batch are added.
    """
    locks_of: dict[CollaborationId, dict[TaskKey, list[StoredLock]]] = {}
    for lock in batch.put_locks:
        if (ref := lock.attempt) is not None:
            locks_of.setdefault(ref.collaboration_id, {}).setdefault(ref.task_key, []).append(lock)
    locking: Lane = []
    for resource, claim_id in batch.deleted_locks:
        _append(locking, [Delete(layout.lock(resource, claim_id))])
    packed: Lane = []
    lanes: list[Lane] = []
    for collaboration_id, operations in _by_collaboration(batch, layout, spread).items():
        if locks_of and (locks := locks_of.pop(collaboration_id, None)) is not None:
            _append_locking(locking, layout, leases, operations, locks)
            continue
        size = _size(operations)
        if len(operations) > TXN_OPERATIONS_MAX or size > TXN_BYTES_MAX:
            lanes.append(_split(operations))
        elif not packed or not packed[-1].take(operations, size):
            packed.append(Transaction(operations, size_bytes=size))
    for rest in locks_of.values():
        # Taken by the code of attempts about which nothing else changes.
        _append_locking(locking, layout, leases, [], rest)
    for lock in batch.put_locks:
        if lock.attempt is None:
            _append_locks(locking, layout, leases, [], [lock])
    for operation in _learned(batch, layout):
        _append(packed, [operation])
    lanes += [[transaction] for transaction in packed]
    return [lane for lane in [locking, *lanes] if lane]


def _by_collaboration(
    batch: Batch, layout: Layout, spread: set[CollaborationId]
) -> dict[CollaborationId, list[Operation]]:
    """Return each collaboration's writes in their order: specifications, tasks, itself."""
    writes: dict[CollaborationId, list[Operation]] = {}
    small: dict[CollaborationId, Operation] = {}
    for collaboration_id, spec in batch.specs.items():
        record = batch.collaborations.get(collaboration_id)
        if record is not None and is_small(spec.submission):
            only = TaskKey(collaboration_id, spec.submission.spec.tasks[0].task_id)
            value = records.encode_small(spec, record, batch.tasks.get(only))
            small[collaboration_id] = Put(layout.collaboration(collaboration_id), value)
            continue
        spread.add(collaboration_id)
        writes[collaboration_id] = [
            Put(layout.spec(collaboration_id, number), part)
            for number, part in enumerate(records.encode_specs(spec))
        ]
    for key, task in batch.tasks.items():
        if key.collaboration_id not in small:
            spread.add(key.collaboration_id)
            put = Put(layout.task(*key), records.encode_task(task))
            writes.setdefault(key.collaboration_id, []).append(put)
    for collaboration_id, record in batch.collaborations.items():
        whole = small.get(collaboration_id)
        if whole is not None:
            writes[collaboration_id] = [whole]
            continue
        put = Put(layout.collaboration(collaboration_id), records.encode_collaboration(record))
        writes.setdefault(collaboration_id, []).append(put)
    for collaboration_id in batch.forgotten:
        # Its own record first: what is left without it is an orphan that the next `load` deletes.
        writes[collaboration_id] = [Delete(layout.collaboration(collaboration_id))]
        if collaboration_id in spread:
            writes[collaboration_id].append(Delete(layout.below(collaboration_id), prefix=True))
    return writes


def _learned(batch: Batch, layout: Layout) -> Iterator[Operation]:
    """Yield the writes of what was learned: small ones, of which a batch holds a bounded number."""
    for key, value in batch.learned.items():
        name = layout.learned_record(key)
        yield Delete(name) if value is None else Put(name, learned.encode(value))


def _append_locking(
    lane: Lane,
    layout: Layout,
    leases: Mapping[InstanceKey, int],
    operations: Sequence[Operation],
    locks: Mapping[TaskKey, list[StoredLock]],
) -> None:
    """Append one collaboration's writes, each task's together with the locks that its attempt claims.

    What the code of attempts has taken follows request by request: there may be any number of them.
    """
    # Of a small collaboration one record has its task, too.
    alone = operations[0].key if len(operations) == 1 else ""
    declared: dict[str, list[StoredLock]] = {}
    taken: dict[str, list[StoredLock]] = {}
    for key, rows in locks.items():
        name = layout.collaboration(key.collaboration_id) if len(locks) == 1 else ""
        name = name if name == alone else layout.task(*key)
        for row in rows:
            if row.declared:
                declared.setdefault(name, []).append(row)
            else:
                taken.setdefault(row.claim_id, []).append(row)
    for operation in operations:
        _append_locks(lane, layout, leases, [operation], declared.pop(operation.key, []))
    for rows in (*declared.values(), *taken.values()):
        _append_locks(lane, layout, leases, [], rows)


def _append_locks(
    lane: Lane,
    layout: Layout,
    leases: Mapping[InstanceKey, int],
    first: Sequence[Operation],
    locks: Sequence[StoredLock],
) -> None:
    """Append `first` and new locks, with a look at who holds their resources, as one unit."""
    puts: list[Operation] = [
        Put(layout.lock(lock.resource, lock.claim_id), records.encode_lock(lock), leases[lock.instance])
        for lock in locks
    ]
    looks: list[Operation] = [
        Get(layout.resource(lock.resource), prefix=True, order="oldest") for lock in locks
    ]
    _append(lane, [*first, *puts, *looks])
    transaction = lane[-1]
    start = len(transaction.operations) - len(looks)
    transaction.locks += ((start + number, lock) for number, lock in enumerate(locks))


def _append(lane: Lane, unit: Sequence[Operation]) -> None:
    size = _size(unit)
    if not lane or not lane[-1].take(unit, size):
        lane.append(Transaction([*unit], size_bytes=size))


def _split(operations: Iterable[Operation]) -> Lane:
    lane: Lane = []
    for operation in operations:
        _append(lane, [operation])
    return lane


def _size(operations: Iterable[Operation]) -> int:
    size = 0
    for operation in operations:
        value = len(operation.value) if isinstance(operation, Put) else 0
        size += len(operation.key) + value + _OVERHEAD_BYTES
    return size
