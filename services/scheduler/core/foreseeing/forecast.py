"""What will run where, as far as it matters now: the standing plan of PREDICTIVE, rolled on to this moment.

Tasks come in serving order; each takes the place where it is predicted to end first, on slots that are free
and on slots that are predicted to become free, in gaps as well. A task that will be ready soon takes its
place before a less urgent one that is ready already: it joins when everything that it waits for runs or has a
place here. What is found is where ready tasks start at once, and why others wait although an agent is free.

Method: list scheduling with insertion by upward rank (HEFT: Topcuoglu, Hariri and Wu, IEEE TPDS 13:3, 2002)
over the part of the graph that is next, done again at every event. The standing plan of the background search
(`foreseeing.standing`) moves a task to another place where that costs it little by itself.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant, after
from services.scheduler.core.book import Book
from services.scheduler.core.course import Task
from services.scheduler.core.foreseeing.foresight import Wait
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import (
    CollaborationState,
    InstanceKey,
    SchedulingPolicy,
    TaskKey,
    TaskState,
)
from services.scheduler.core.placing.lanes import order_of
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.pools import has_left
from services.scheduler.core.planning.timeline import Timeline
from services.scheduler.core.prediction import learning
from services.scheduler.core.running import lateness

#: Tasks that one forecast places, and instances that it looks at for a demand: so many of the free and so
#: many of the busy ones, those that got their last attempt the longest ago. What is beyond does not wait.
TASKS_MAX = 256
ROWS_MAX = 64
#: Free slots of one instance that count.
SLOTS_MAX = 16
#: The standing plan is followed while it makes the task itself end later by no more than this share of its
#: duration: what ran differently since the plan was made must not be paid for twice.
_FOLLOWED_SHARE = 0.5


class Start(NamedTuple):
    """A parked task starts now."""

    task: Task
    row: int


@dataclass(slots=True)
class Forecast:
    """What follows for this placement. Parked tasks in none of the three wait because no agent is free."""

    starts: list[Start] = field(default_factory=list)
    #: They wait although an agent is free.
    waits: list[tuple[Task, Wait]] = field(default_factory=list)
    #: Whether all parked tasks that a free agent is left for were looked at; if not, the others take it.
    complete: bool = True


class _Slot:
    """One slot of an instance."""

    __slots__ = ("open", "since", "times")

    def __init__(self, since: int, *, is_open: bool) -> None:
        #: From when it is free; `open`: that is now, and nothing starts there yet.
        self.since = since
        self.open = is_open
        self.times = Timeline()


class _Option(NamedTuple):
    """A place for a task; smaller is better. Of one row's slots the first of equals counts."""

    end: int
    start: int
    row: int
    slot: _Slot


def forecast(book: Book, now: Instant, taken: dict[int, int]) -> Forecast:
    """Return what PREDICTIVE wants of this placement; `taken` are free slots by row that are promised."""
    book.index.settle()
    found = Forecast()
    if book.foresight.waiting and book.index.fleet.live:
        _Look(book, now, taken).run(found)
    return found


class _Look:
    """One forecast being made."""

    def __init__(self, book: Book, now: Instant, taken: dict[int, int]) -> None:
        self._book, self._now, self._taken = book, now, taken
        self._slots: dict[int, list[_Slot]] = {}
        self._rows: dict[tuple[frozenset[Skill], frozenset[AgentId]], list[int]] = {}
        self._running: dict[TaskKey, Task] = {}
        #: (class, order, tie, release, task).
        self._line: list[tuple[int, int, int, int, Task]] = []
        #: Of a task that waits for others: how many of them have a predicted end, and the last one.
        self._covered: dict[TaskKey, tuple[int, int]] = {}
        self._open = 0
        self._pushed = 0

    def run(self, found: Forecast) -> None:
        parked = [*self._book.foresight.first(TASKS_MAX + 1)]
        found.complete = len(parked) <= TASKS_MAX
        for task in parked[:TASKS_MAX]:
            self._rows_of(task.demand)
            self._push(task, self._now)
        self._open = sum(slot.open for slots in self._slots.values() for slot in slots)
        for task in [*self._running.values()]:
            if task.dependents and task.demand.style.policy is SchedulingPolicy.PREDICTIVE:
                ends = [lateness.attempt_end(task, attempt, self._now) for attempt in task.open_attempts]
                self._cover(task, min(ends))
        placed = 0
        while self._line and placed < TASKS_MAX and self._open > 0:
            *_, release, task = heapq.heappop(self._line)
            placed += 1
            self._place(task, release, found)
        # Without an open slot nobody waits by choice; with one, whoever was not looked at might.
        found.complete = self._open == 0 or (found.complete and not self._line)

    def _place(self, task: Task, release: int, found: Forecast) -> None:
        options, open_now = self._options(task, release)
        if not options:
            return
        best = self._preferred(task, min(options), options)
        parked = task.key in self._book.foresight.waiting
        starts = parked and best.slot.open and best.start == self._now
        if starts:
            found.starts.append(Start(task, best.row))
            best.slot.open = False
            self._open -= 1
        elif parked and open_now:
            found.waits.append((task, self._wait(best, min(open_now))))
        best.slot.times.take(best.start, best.end)
        self._cover(task, best.end)

    def _preferred(self, task: Task, best: _Option, options: list[_Option]) -> _Option:
        """Return the place at the agent of the standing plan, if that costs the task itself little."""
        planned = self._book.foresight.plan.places.get(task.key)
        if planned is None:
            return best
        for option in options:
            if self._key(option.row) == planned[1]:
                dearer_ms = option.end - best.end
                return option if dearer_ms <= _FOLLOWED_SHARE * (option.end - option.start) else best
        return best

    def _wait(self, best: _Option, other: _Option) -> Wait:
        return Wait(
            self._key(best.row),
            Instant(best.start),
            Instant(best.end),
            self._key(other.row),
            Instant(other.end),
            Instant(max(best.start, other.end - (best.end - best.start))),
            self._now,
        )

    def _options(self, task: Task, release: int) -> tuple[list[_Option], list[_Option]]:
        """Return the best place at each instance, and what starting now at an open slot would give."""
        book, now = self._book, self._now
        options: list[_Option] = []
        open_now: list[_Option] = []
        needs = task.demand.needs
        for row in self._rows_of(task.demand):
            instance = book.index.fleet.instances[row]
            if instance is None or any(instance.capacities.get(name, 0) < amount for name, amount in needs):
                continue
            lasts_ms = learning.mean_ms(book, task.spec, instance.key.agent_id, task.task_type)
            fits = has_left(instance, task.demand)
            best: _Option | None = None
            free = [slot for slot in self._slots[row] if slot.open] if fits and release <= now else []
            if free:
                open_now.append(_Option(now + lasts_ms, now, row, free[0]))
            for slot in self._slots[row]:
                # What it needs and is used by others now is there when the next attempt has ended, at best.
                since = slot.since if fits or slot.since > now else now + 1
                start = slot.times.earliest_ms(max(release, since), lasts_ms)
                if best is None or start + lasts_ms < best.end:
                    best = _Option(start + lasts_ms, start, row, slot)
            if best is not None:
                options.append(best)
        return options, open_now

    def _cover(self, task: Task, end: int) -> None:
        """Note that a task is predicted to end; what waits for it alone has its turn then."""
        if task.collaboration.state is CollaborationState.SUSPENDED:
            return
        tasks = task.collaboration.tasks
        for name in task.dependents:
            later = tasks[name]
            if later.state is not TaskState.PENDING:
                continue
            count, release = self._covered.get(later.key, (0, 0))
            count, release = count + 1, max(release, end)
            self._covered[later.key] = count, release
            if count == later.unmet and later.spec.gang is None:
                self._push(later, release)

    def _push(self, task: Task, release: int) -> None:
        self._pushed += 1
        entry = (int(task.priority), order_of(task), self._pushed, release, task)
        heapq.heappush(self._line, entry)

    def _rows_of(self, demand: Demand) -> list[int]:
        """Return the instances that are looked at for a demand."""
        key = (demand.skills, demand.agents)
        known = self._rows.get(key)
        if known is not None:
            return known
        fleet = self._book.index.fleet
        rows = fleet.eligible(demand.skills, demand.agents).rows
        free = fleet.free[rows] > 0
        chosen = [
            row
            for part in (rows[free], rows[~free])
            for row in part[np.argsort(fleet.turn[part], kind="stable")[:ROWS_MAX]].tolist()
            if (instance := fleet.instances[row]) is not None and self._open_row(row, instance)
        ]
        self._rows[key] = chosen
        return chosen

    def _open_row(self, row: int, instance: Instance) -> bool:
        """Take in an instance's slots; return whether it takes work at all."""
        if instance.stream is None or instance.draining or row in self._book.index.withheld:
            return False
        if row not in self._slots:
            free = max(0, min(SLOTS_MAX, instance.free) - self._taken.get(row, 0))
            slots = [_Slot(self._now, is_open=True) for _ in range(free)]
            for task in instance.held.values():
                self._running[task.key] = task
                attempt = task.at(instance.key)
                if attempt is not None and not attempt.speculative:
                    end = lateness.attempt_end(task, attempt, self._now)
                    slots.append(_Slot(max(end, after(self._now, 1)), is_open=False))
            self._slots[row] = slots
        return True

    def _key(self, row: int) -> InstanceKey:
        return self._book.index.key_of(row)
