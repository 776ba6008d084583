"""Ready tasks that the policy PREDICTIVE lets wait for a better agent although another one is free.

They are *parked*: they wait for an agent like others, and are counted and shown like others, but outside of
the placement index, so that what is placed there never looks at them. A placement forecasts
(`foreseeing.forecast`) and lets those into the index that start now, each with the row that it wishes for;
see `foreseeing.predictive`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.core.instants import Instant, rfc3339
from services.scheduler.core.course import Task
from services.scheduler.core.model import InstanceKey, Priority, TaskKey
from services.scheduler.core.placing.index import PlacementIndex
from services.scheduler.core.placing.lanes import Entry, is_live, order_of, smallest
from services.scheduler.core.timers import Timer, Timers

#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
#: More than `order_of` needs: the class comes before it.
_ORDER_BITS = 160
_BEGINNING = Instant(0)
#: Outcomes that wait to be counted.
_OUTCOMES_MAX = 256
#: A task that wishes for no agent in particular.
ANY_ROW = -1


class Wait(NamedTuple):
    """Why a task waits although an agent is free."""

    #: Where it is predicted to start, when, and when it would end there.
    instance: InstanceKey
    start: Instant
    end: Instant
    #: An agent that is free, and when the task would end there if it started now.
    other: InstanceKey
    other_end: Instant
    #: From then on waiting can have gained nothing.
    until: Instant
    #: When this was forecast.
    time: Instant

    def words(self) -> str:
        """Return the reason for people."""
        gain_ms = self.other_end - self.end
        away_s = max(0, self.start - self.time) / 1_000
        free = f"waits for agent {self.instance}, predicted free in {away_s:.1f} s"
        if gain_ms > 0:
            why = f"finishes {gain_ms / 1_000:.1f} s earlier than on {self.other}, which is free"
        else:
            why = f"{self.other}, which is free, is kept for work that more depends on"
        return f"{free}, {why}; until {rfc3339(self.until)}"


@dataclass(slots=True)
class Hold:
    """A task that waits by choice."""

    wait: Wait
    since: Instant
    #: Ends the waiting at `wait.until`.
    timer: Timer


class Asked(NamedTuple):
    """What a search that is under way was asked about."""

    number: int
    tasks: tuple[TaskKey, ...]
    #: [task][instance]: predicted durations, in milliseconds.
    rows: tuple[tuple[int | None, ...], ...]
    instances: tuple[InstanceKey, ...]


@dataclass(slots=True)
class StandingPlan:
    """The best plan so far of what is open; see `foreseeing.standing`."""

    #: Task -> its place in the order, and where it is best placed.
    places: dict[TaskKey, tuple[int, InstanceKey]] = field(default_factory=dict)
    asked: Asked | None = None
    #: The newest question's number, and before when there will not be another.
    number: int = 0
    next_time: Instant = _BEGINNING
    #: What came of searches since it was last counted: (asked, adopted, refused, late or failed; gain in ms).
    outcomes: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=_OUTCOMES_MAX))

    def note(self, outcome: str, gain_ms: int = 0) -> None:
        """Have something counted."""
        self.outcomes.append((outcome, gain_ms))


@dataclass(slots=True)
class Foresight:
    """See the module. Owned by the scheduler's book; each leadership makes its own."""

    #: Parked tasks.
    waiting: dict[TaskKey, Task] = field(default_factory=dict)
    #: Those of them that an agent was free for at the last placement.
    holds: dict[TaskKey, Hold] = field(default_factory=dict)
    #: Tasks that waited for as long as it could gain anything: they take the first agent that is free.
    overdue: dict[TaskKey, Task] = field(default_factory=dict)
    #: In the index for the present placement only.
    chosen: list[Task] = field(default_factory=list)
    plan: StandingPlan = field(default_factory=StandingPlan)
    _heap: list[Entry] = field(default_factory=list)
    #: The same tasks by the instant at which they became ready, without EMERGENCY, which has no age.
    _ages: list[Entry] = field(default_factory=list)

    def park(self, task: Task, index: PlacementIndex) -> None:
        """Let a task wait here."""
        task.queue_number = number = index.next_turn()
        index.waiting_count += 1
        self.waiting[task.key] = task
        heapq.heappush(self._heap, (int(task.priority) << _ORDER_BITS | order_of(task), number, task))
        if task.priority is not Priority.EMERGENCY:
            heapq.heappush(self._ages, (int(task.ready_time or 0), number, task))
        if len(self._heap) > max(_REBUILD_SIZE_MIN, 2 * len(self.waiting)):
            for heap in (self._heap, self._ages):
                heap[:] = [entry for entry in heap if is_live(entry)]
                heapq.heapify(heap)

    def unpark(self, task: Task, index: PlacementIndex) -> bool:
        """Take a task out, and return whether it was here; what is known of its waiting stays."""
        if self.waiting.pop(task.key, None) is None:
            return False
        task.queue_number = 0
        index.waiting_count -= 1
        return True

    def forget(self, task: Task, timers: Timers) -> None:
        """Forget why a task waited; it waits no more."""
        task.wish = ANY_ROW
        self.overdue.pop(task.key, None)
        self.release(task.key, timers)

    def release(self, key: TaskKey, timers: Timers) -> None:
        """Note that a task does not wait by choice at the moment."""
        hold = self.holds.pop(key, None)
        if hold is not None:
            timers.cancel(hold.timer)

    def first(self, count: int) -> Iterator[Task]:
        """Yield up to `count` parked tasks in serving order, but for the shares of their requesters."""
        return (entry[2] for entry in smallest(self._heap, count, is_live))

    def oldest(self, count: int) -> Iterator[Task]:
        """Yield up to `count` parked tasks that have an age, those first that became ready first."""
        return (entry[2] for entry in smallest(self._ages, count, is_live))
