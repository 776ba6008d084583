"""One simulated leadership: what the driver does around the core, without an event loop, on the memory store.

The order is the driver's: step every event, let what is due happen, place; commit; only then tell. A leader
may be made to die before its commit, or after it and before anybody was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

from services.common.core.entries import EntryDraft
from services.common.core.instants import Instant
from services.common.election import Leadership
from services.scheduler.batches import sort, split_written
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Answer, Assign, Effect, EndLease, GrantLocks, Send
from services.scheduler.core.events import Event, LocksWritten, PlacementDue, Recovered, Ticked
from services.scheduler.core.state import SchedulerState
from services.scheduler.stores.memory import MemoryStore
from tests.unit.scheduler.scheduler_sim_checker import Checker

T = TypeVar("T")
Tell = Callable[[Send | Answer], None]
MakeState = Callable[[Settings, int], SchedulerState]


class _Tenure:
    """A tenure that is never asked: the store's guard decides."""

    live = True

    def __init__(self) -> None:
        self.lost = asyncio.Event()


def leadership(epoch: int) -> Leadership:
    return Leadership(epoch, f"candidate-{epoch}", _Tenure())


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run what never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # a coroutine's return value
    raise AssertionError(f"{work} waits")


class Death(Enum):
    """When a leader dies."""

    BEFORE_COMMIT = auto()
    AFTER_COMMIT = auto()


class LeaderDied(Exception):
    """The leader is gone; nothing of its last batch was told."""


class Leader:
    """A leadership with its state."""

    def __init__(
        self, epoch: int, store: MemoryStore, checker: Checker, settings: Settings, make: MakeState
    ) -> None:
        self.leadership = leadership(epoch)
        self.store = store
        self.checker = checker
        self.state = make(settings, epoch)
        #: It dies in the next batch.
        self.death: Death | None = None
        self.entries: list[EntryDraft] = []
        self._carried: list[Effect] = []

    def load(self) -> Recovered:
        stored = at_once(self.store.load(self.leadership))
        return Recovered("recovery", stored.collaborations, stored.locks, stored.foreign, stored.learned)

    def run(self, events: Sequence[Event], now: Instant, tell: Tell) -> None:
        """Work on one batch until nothing of it is left; `tell` gets what is to be told, in order."""
        self._batch(events, now, tell)
        while self._carried:
            self._batch((), now, tell)

    def _batch(self, events: Sequence[Event], now: Instant, tell: Tell) -> None:
        state, checker = self.state, self.checker
        effects, self._carried = self._carried, []
        for event in events:
            effects += state.handle(event, now)
        if state.next_due() <= now:
            effects += state.handle(Ticked("tick", 0.5), now)
        effects += state.handle(PlacementDue("place"), now)
        found = sort(effects)
        if self.death is Death.BEFORE_COMMIT:
            raise LeaderDied
        if not found.batch.empty:
            locks = at_once(self.store.commit(found.batch, self.leadership))
            checker.commit(found.batch, self.leadership.epoch, now)
            if self.death is Death.AFTER_COMMIT:
                raise LeaderDied
            if locks:
                granted, self._carried = split_written(state.handle(LocksWritten("commit", locks), now))
                found.sends += [each for each in granted if isinstance(each, Assign | GrantLocks)]
        self.entries += found.entries
        for lease in found.leases:
            self._end_lease(lease)
        for send in found.sends:
            tell(send)
        for answer in found.answers:
            tell(answer)

    def _end_lease(self, lease: EndLease) -> None:
        self.store.end_lease(lease.instance)
