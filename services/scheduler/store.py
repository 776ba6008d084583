"""What the scheduler needs of durable storage."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from services.common.core.ids import CollaborationId, ResourceName
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


class LeadershipLostError(Exception):
    """The guard did not hold: another leadership is the newest, and nothing of this commit is there."""


@dataclass(slots=True)
class Batch:
    """What one commit writes: at most one value for each subject, the newest.

    Of a small collaboration (`records.is_small`) it has everything or nothing, so that a store may keep it
    in one place.
    """

    specs: dict[CollaborationId, SpecRecord] = field(default_factory=dict)
    collaborations: dict[CollaborationId, CollaborationRecord] = field(default_factory=dict)
    tasks: dict[TaskKey, TaskRecord] = field(default_factory=dict)
    forgotten: dict[CollaborationId, None] = field(default_factory=dict)
    put_locks: list[StoredLock] = field(default_factory=list)
    deleted_locks: list[tuple[ResourceName, str]] = field(default_factory=list)
    #: None deletes.
    learned: dict[LearnedKey, Learned | None] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many values are written or deleted; a forgotten collaboration counts once."""
        return (
            len(self.specs)
            + len(self.collaborations)
            + len(self.tasks)
            + len(self.forgotten)
            + len(self.put_locks)
            + len(self.deleted_locks)
            + len(self.learned)
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.size == 0


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything that the store holds, as of one moment."""

    collaborations: tuple[StoredCollaboration, ...]
    locks: tuple[StoredLock, ...]
    foreign: tuple[ForeignLock, ...]
    learned: tuple[tuple[LearnedKey, Learned], ...] = ()


@dataclass(frozen=True, slots=True)
class LockKeys:
    """Changes of the locks' keys: other programs' keys that are there, and keys that are gone."""

    foreign: tuple[ForeignLock, ...] = ()
    deleted: tuple[tuple[ResourceName, str], ...] = ()


class SchedulerStore(Protocol):
    """Collaborations, tasks and locks of the plane, and what was learned from them.

    Fencing:     `commit` and `load` with a leadership that is not the newest raise `LeadershipLostError`;
                 of a commit, nothing is there then.
    Consistency: a batch may be cut into transactions, one after the other or side by side. All writes of one
                 collaboration come in this order: specifications, tasks with the locks of their attempts, the
                 collaboration itself; a collaboration without its own record does not exist. An attempt and
                 its locks share a transaction. Deleted locks come before new ones. Learned records stand
                 each for itself, in no order.
    Durability:  when `commit` returns, all of it survives power loss.
    Retry:       `commit` of the same batch again has the effect of one; so after an indefinite error the
                 caller commits the same batch again before any other.
    Locks:       a new lock's key hangs on the lease of its instance, which the store keeps alive until
                 `end_lease`; a new leader's store goes on with the leases that it finds. Of all keys under a
                 resource the oldest one holds, whoever put it: `commit` tells which new ones were beaten.
    Errors:      STORE_UNAVAILABLE is indefinite: any part of the batch may be there. Other errors are
                 definite for the transaction that failed, and indefinite for the batch.
    """

    async def load(self, leadership: Leadership) -> Stored:
        """Return everything, and delete what belongs to no collaboration."""
        ...

    async def commit(self, batch: Batch, leadership: Leadership) -> tuple[LockWritten, ...]:
        """Make a batch durable; return what became of its new locks, in the order of their requests."""
        ...

    def watch_locks(self) -> AsyncGenerator[LockKeys, None]:
        """Yield changes of the locks' keys since `load`, for ever; nothing is left out.

        What the plane itself deleted is told, too, and the same news may come again. Close with
        `contextlib.aclosing`.
        """
        ...

    def end_lease(self, instance: InstanceKey) -> None:
        """Let the lease of an instance end, at once if the store can be reached."""
        ...

    async def keep_leases(self) -> None:
        """Keep the instances' leases alive until cancelled; a leader runs it from `load` on."""
        ...
