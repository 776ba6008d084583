"""One resource: who holds it, who waits for it, and in which order. `table` decides over many of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import NewType

from services.common.core.fencing import FencingToken
from services.common.core.ids import ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.model import InstanceKey, LockMode, Priority, ResourceClaim, TaskKey

# Names one request, and its key under each resource's prefix in the store.
LockId = NewType("LockId", str)


@dataclass(frozen=True, slots=True)
class TaskOwner:
    """The attempts of one task, of which at most one is open."""

    task: TaskKey

    def __str__(self) -> str:
        return f"task {self.task}"


@dataclass(frozen=True, slots=True)
class InstanceOwner:
    """An agent instance, for what it locks outside of attempts."""

    instance: InstanceKey

    def __str__(self) -> str:
        return f"agent {self.instance}"


# On whose behalf a lock is taken: one line of work, which goes on only when all that it asked for is granted.
LockOwner = TaskOwner | InstanceOwner


@dataclass(frozen=True, slots=True)
class LockRequest:
    """What is asked for: all claims or none. Their resources are distinct."""

    lock_id: LockId
    owner: LockOwner
    claims: tuple[ResourceClaim, ...]
    priority: Priority


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key that somebody else put under a resource's prefix, as `etcdctl lock` does. Always exclusive."""

    resource: ResourceName
    key: str
    # The store's revision at which it was created: of all keys under the prefix the oldest one holds.
    revision: int


class LockStage(Enum):
    """Life cycle of one request."""

    # In the queues of its resources; holds nothing.
    WAITING = auto()
    # Occupies its resources; not durable yet.
    PROPOSED = auto()
    # As PROPOSED, but nobody wants it any more: it ends as soon as its fate is known.
    ABANDONED = auto()
    # Durable, with its token.
    HELD = auto()
    ENDED = auto()


@dataclass(eq=False, slots=True)
class LockRecord:
    """One request with what became of it."""

    request: LockRequest
    # Place in every queue: the smaller, the earlier.
    order: tuple[int, int]
    # What it still claims; shrinks when a part is released.
    modes: dict[ResourceName, LockMode]
    # Since when it waits, or holds.
    since: Instant
    stage: LockStage = LockStage.WAITING
    # Set when HELD.
    token: FencingToken | None = None
    # Who acts for the owner; set when HELD.
    agent: InstanceKey | None = None
    # The most urgent class that was lent to it while it waited or held; None for none.
    lent: Priority | None = None

    @property
    def priority(self) -> Priority:
        """The class in which it counts: its own, or a more urgent one that was lent to it."""
        own = self.request.priority
        return own if self.lent is None else min(own, self.lent)

    @property
    def lock_id(self) -> LockId:
        """The request's name."""
        return self.request.lock_id

    @property
    def owner(self) -> LockOwner:
        """On whose behalf it is."""
        return self.request.owner


class ResourceQueue:
    """Holders and waiters of one resource.

    Invariant: the holders are one exclusive record or any number of shared ones.
    """

    def __init__(self, name: ResourceName) -> None:
        self._name = name
        self.holders: dict[LockId, LockRecord] = {}
        self.foreign: dict[str, ForeignKey] = {}
        # Kept apart by mode, so that who may go next is found without walking through everybody.
        self._exclusive: list[LockRecord] = []
        self._shared: list[LockRecord] = []

    def __repr__(self) -> str:
        waiting = len(self._exclusive) + len(self._shared)
        return f"<{self._name} held={len(self.holders)} foreign={len(self.foreign)} waiting={waiting}>"

    @property
    def is_empty(self) -> bool:
        """Whether nobody holds it or waits for it."""
        return not (self.holders or self.foreign or self._exclusive or self._shared)

    def add_waiter(self, record: LockRecord) -> None:
        """Put `record` in its place."""
        insort(self._lane(record), record, key=_order)

    def remove_waiter(self, record: LockRecord) -> None:
        """Take `record` out; it must wait here."""
        lane = self._lane(record)
        del lane[bisect_left(lane, record.order, key=_order)]

    def admits(self, mode: LockMode) -> bool:
        """Return whether the holders, others' keys included, leave room for `mode`.

        Others' keys that merely wait count too: they came first, and do not know of our queue.
        """
        return not self.foreign and not any(True for _ in self.holders_against(mode))

    def holders_against(self, mode: LockMode) -> Iterator[LockRecord]:
        """Yield the holders that leave no room for `mode`."""
        first = next(iter(self.holders.values()), None)
        if first is not None and LockMode.EXCLUSIVE in (mode, first.modes[self._name]):
            yield from self.holders.values()

    def waiters_against(self, mode: LockMode) -> Iterator[LockRecord]:
        """Yield the waiters that could not hold together with `mode`."""
        yield from self._exclusive
        if mode is LockMode.EXCLUSIVE:
            yield from self._shared

    def waiters(self) -> list[LockRecord]:
        """Return all waiters, first in line first."""
        return sorted([*self._exclusive, *self._shared], key=_order)

    def leading(self) -> Iterator[LockRecord]:
        """Yield the waiters that no other waiter of this resource is in the way of."""
        if not self._exclusive:
            yield from self._shared
            return
        first = self._exclusive[0]
        shared_before = bisect_left(self._shared, first.order, key=_order)
        yield from islice(self._shared, shared_before)
        if shared_before == 0:
            yield first

    def ahead_of(self, record: LockRecord) -> Iterator[LockRecord]:
        """Yield the earlier waiters that conflict with `record`."""
        yield from islice(self._exclusive, bisect_left(self._exclusive, record.order, key=_order))
        if record.modes[self._name] is LockMode.EXCLUSIVE:
            yield from islice(self._shared, bisect_left(self._shared, record.order, key=_order))

    def behind(self, record: LockRecord) -> Iterator[LockRecord]:
        """Yield the later waiters that conflict with `record`."""
        yield from islice(self._exclusive, bisect_right(self._exclusive, record.order, key=_order), None)
        if record.modes[self._name] is LockMode.EXCLUSIVE:
            yield from islice(self._shared, bisect_left(self._shared, record.order, key=_order), None)

    def next_ahead_of(self, record: LockRecord) -> Iterator[LockRecord]:
        """Yield the nearest of `ahead_of`: those from which all the others are reached in further steps.

        A queue of n waiters has up to n² pairs that conflict, and at most 2n of these.
        """
        place = bisect_left(self._exclusive, record.order, key=_order)
        before = self._exclusive[place - 1] if place else None
        if record.modes[self._name] is LockMode.EXCLUSIVE:
            end = bisect_left(self._shared, record.order, key=_order)
            start = bisect_left(self._shared, before.order, key=_order) if before else 0
            if start < end:
                yield from islice(self._shared, start, end)
                return
        if before:
            yield before

    def _lane(self, record: LockRecord) -> list[LockRecord]:
        return self._exclusive if record.modes[self._name] is LockMode.EXCLUSIVE else self._shared


def _order(record: LockRecord) -> tuple[int, int]:
    return record.order
