"""All requests for locks, found by id, by resource and by owner. Keeps books; `table` decides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from services.common.core.ids import ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.locking.queue import LockId, LockOwner, LockRecord, LockStage, ResourceQueue

_NONE: dict[LockId, LockRecord] = {}


class LockBook:
    """The records and their indices.

    Invariants: a record WAITING is in the queue of each of its resources, any other one among their holders;
    no queue, and no owner's index, is kept empty.
    """

    def __init__(self) -> None:
        self.records: dict[LockId, LockRecord] = {}
        self.queues: dict[ResourceName, ResourceQueue] = {}
        #: Until when an owner's locks stand unless renewed.
        self.until: dict[LockOwner, Instant] = {}
        self._waiting: dict[LockOwner, dict[LockId, LockRecord]] = {}
        # PROPOSED and HELD. What is ABANDONED is its owner's no more: it ends whatever the owner does.
        self._occupying: dict[LockOwner, dict[LockId, LockRecord]] = {}

    # Reads.

    def waiting_of(self, owner: LockOwner) -> Collection[LockRecord]:
        """Return the owner's requests that wait."""
        return self._waiting.get(owner, _NONE).values()

    def occupying_of(self, owner: LockOwner) -> Collection[LockRecord]:
        """Return the owner's requests that are granted."""
        return self._occupying.get(owner, _NONE).values()

    def knows(self, owner: LockOwner) -> bool:
        """Return whether the owner waits for or holds anything."""
        return owner in self._waiting or owner in self._occupying

    def has_room(self, record: LockRecord) -> bool:
        """Return whether the holders of all its resources leave room for `record`."""
        return all(self.queues[name].admits(mode) for name, mode in record.modes.items())

    def holders_against(self, record: LockRecord) -> Iterator[LockRecord]:
        """Yield the holders that leave no room for `record`."""
        for name, mode in record.modes.items():
            yield from self.queues[name].holders_against(mode)

    def waiters_against(self, record: LockRecord) -> Iterator[LockRecord]:
        """Yield the waiters, earlier and later ones, that could not hold together with `record`."""
        for name, mode in record.modes.items():
            yield from (other for other in self.queues[name].waiters_against(mode) if other is not record)

    # Changes.

    def queue(self, name: ResourceName) -> ResourceQueue:
        """Return the queue of a resource, made when it is not there; fill it, or `tidy` it."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = ResourceQueue(name)
        return queue

    def tidy(self, names: Iterable[ResourceName]) -> None:
        """Drop the queues among `names` that are empty."""
        for name in names:
            if name in self.queues and self.queues[name].is_empty:
                del self.queues[name]

    def add_waiting(self, record: LockRecord) -> None:
        """Put `record` into its place in the queues."""
        record.stage = LockStage.WAITING
        self.records[record.lock_id] = record
        for name in record.modes:
            self.queue(name).add_waiter(record)
        self._waiting.setdefault(record.owner, {})[record.lock_id] = record

    def remove_waiting(self, record: LockRecord) -> None:
        """Take `record` out of the queues."""
        for name in record.modes:
            self.queues[name].remove_waiter(record)
        _drop(self._waiting, record)

    def move(self, record: LockRecord, place: int) -> None:
        """Give a record another place, in the queues where it waits or should it wait again."""
        queues = [self.queues[name] for name in record.modes] if record.stage is LockStage.WAITING else []
        for queue in queues:
            queue.remove_waiter(record)
        record.order = (place, record.order[1])
        for queue in queues:
            queue.add_waiter(record)

    def add_occupying(self, record: LockRecord, stage: LockStage) -> None:
        """Let `record` occupy its resources, PROPOSED or HELD."""
        record.stage = stage
        self.records[record.lock_id] = record
        for name in record.modes:
            self.queue(name).holders[record.lock_id] = record
        self._occupying.setdefault(record.owner, {})[record.lock_id] = record

    def abandon(self, record: LockRecord) -> None:
        """Take a PROPOSED record from its owner; it goes on occupying its resources."""
        record.stage = LockStage.ABANDONED
        _drop(self._occupying, record)

    def remove_occupying(self, record: LockRecord) -> None:
        """Take `record` from its resources."""
        for name in record.modes:
            del self.queues[name].holders[record.lock_id]
        if record.stage is not LockStage.ABANDONED:
            _drop(self._occupying, record)

    def shrink(self, record: LockRecord, names: Iterable[ResourceName]) -> None:
        """Take a HELD record from some of its resources, not from all."""
        for name in names:
            del self.queues[name].holders[record.lock_id]
            del record.modes[name]

    def forget(self, record: LockRecord) -> None:
        """End a record that was removed before; its queues stay until `tidy`."""
        record.stage = LockStage.ENDED
        del self.records[record.lock_id]
        if not self.knows(record.owner):
            self.until.pop(record.owner, None)


def _drop(index: dict[LockOwner, dict[LockId, LockRecord]], record: LockRecord) -> None:
    records = index[record.owner]
    del records[record.lock_id]
    if not records:
        del index[record.owner]
