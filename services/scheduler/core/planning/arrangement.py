"""A schedule that can be changed: which lane each task is on, in what order, and what that costs.

The times follow from lanes and order alone: each task starts as soon as its lane, its data and its resources
allow. `finish[v]` is the longest chain that ends with v; `late[v]` is when v would have to start for
everything to end at instant 0, so that `finish[v] - duration[v] - late[v]` is the longest chain through v.
With both at hand, the makespan after a task is put anywhere is known without trying: it is the longest chain
through that place, or the longest one of the rest.

A task can be *afloat*: it still has a place in the order and holds up those that depend on it, but takes no
lane, its shortest duration and no time for its data. What is known of the others is then a lower bound.

Method: insertion by heads and tails; Mastrolilli and Gambardella, "Effective neighbourhood functions for the
flexible job shop problem" (Journal of Scheduling 3:1, 2000), with delays between lanes and resources added.
"""

# Sweeps and places are all the time that a search takes: a call of max for each edge would double it.
# ruff: noqa: PLR1730

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule, of_lanes

AFLOAT = -1
_FAR = 2**62
_FIRST = itemgetter(0)


class Place(NamedTuple):
    """Where a task may be put."""

    #: The longest chain through the task there.
    chain_ms: int
    lane: int
    #: Its rank among the tasks of the lane.
    rank: int
    #: Its position in the order, counted without it.
    position: int


class Window(NamedTuple):
    """What a task's neighbours in the graph say about its places."""

    #: It goes between these two positions of the order.
    low: int
    high: int
    #: For each lane the earliest start, and the latest end if everything is to end at instant 0.
    ready: list[int]
    due: list[int]


class Saved(NamedTuple):
    """All that changes, to be put back."""

    order: list[int]
    position: list[int]
    lane: list[int]
    duration: list[int]
    earliest: list[int]
    behind: list[int]
    ahead: list[int]
    delay: list[int]
    finish: list[int]
    late: list[int]
    rows: list[list[int]]


class Arrangement:
    """One complete or partly floating schedule. See the module for what the fields mean."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self._problem, self._lanes = problem, problem.lanes
        count, lanes = len(problem.duration_ms), self._lanes
        # Nodes after the tasks: one that each lane begins with, then one for "nothing".
        self._nothing = count + lanes.count
        self._before, self._after = problem.before, problem.after
        self._locks = [tuple(sorted(problem.locks.get(task, ()))) for task in problem.tasks]
        self._locked = any(self._locks)
        self._shortest = [min(ms for _, ms in choices) for choices in lanes.choices]
        self._soonest = [
            min(lanes.earliest[task][lane] for lane, _ in lanes.choices[task]) for task in problem.tasks
        ]
        self._duration_on = [dict(choices) for choices in lanes.choices]
        lane_of = {
            (agent, number): lane
            for lane, agent in enumerate(lanes.agent)
            for number in [lanes.agent[:lane].count(agent)]
        }
        self.order = sorted(problem.tasks, key=lambda task: schedule.slots[task].start_ms)
        self.position = [0] * count
        self.lane = [lane_of[slot.agent, slot.slot] for slot in schedule.slots]
        self.duration = [self._duration_on[task][self.lane[task]] for task in problem.tasks]
        self.earliest = [lanes.earliest[task][self.lane[task]] for task in problem.tasks]
        self.rows: list[list[int]] = [[] for _ in range(lanes.count)]
        self.behind, self.ahead = [self._nothing] * count, [self._nothing] * count
        for task in self.order:
            self.rows[self.lane[task]].append(task)
        for lane, row in enumerate(self.rows):
            for one, other in zip([count + lane, *row], row, strict=False):
                self.behind[other] = one
                if one < count:
                    self.ahead[one] = other
        self.delay = [
            lanes.outward(edge, self.lane[dependency.before])[self.lane[dependency.after]]
            for edge, dependency in enumerate(problem.dependencies)
        ]
        self.finish = [0] * count + lanes.from_ms + [0]
        self.late = [0] * (count + lanes.count + 1)
        self._renumber(0, count)
        self.update()

    @property
    def makespan_ms(self) -> int:
        """When the last task ends; a lower bound of it while tasks are afloat."""
        return max(self.finish[: len(self.lane)], default=0)

    def critical(self) -> list[int]:
        """Return the tasks on a longest chain, in order."""
        finish, duration, late, longest = self.finish, self.duration, self.late, self.makespan_ms
        return [task for task in self.order if finish[task] - duration[task] - late[task] >= longest]

    def save(self) -> Saved:
        """Return a copy of all that changes."""
        return Saved(
            self.order[:], self.position[:], self.lane[:], self.duration[:], self.earliest[:],
            self.behind[:], self.ahead[:], self.delay[:], self.finish[:], self.late[:],
            [row[:] for row in self.rows],
        )  # fmt: skip

    def restore(self, saved: Saved) -> None:
        """Put a copy back."""
        self.order, self.position, self.lane = saved.order[:], saved.position[:], saved.lane[:]
        self.duration, self.earliest = saved.duration[:], saved.earliest[:]
        self.behind, self.ahead, self.delay = saved.behind[:], saved.ahead[:], saved.delay[:]
        self.finish, self.late = saved.finish[:], saved.late[:]
        self.rows = [row[:] for row in saved.rows]

    def schedule(self) -> Schedule:
        """Return the schedule, when no task is afloat."""
        count = len(self.lane)
        start = [self.finish[task] - self.duration[task] for task in range(count)]
        return of_lanes(self._problem, self.lane, start, self.finish[:count])

    def set_afloat(self, tasks: Sequence[int]) -> None:
        """Take tasks off their lanes; `update` is for the caller."""
        count = len(self.lane)
        behind, ahead, delay = self.behind, self.ahead, self.delay
        for task in tasks:
            one, other = behind[task], ahead[task]
            if one < count:
                ahead[one] = other
            if other < count:
                behind[other] = one
            behind[task] = ahead[task] = self._nothing
            self.rows[self.lane[task]].remove(task)
            self.lane[task] = AFLOAT
            self.duration[task], self.earliest[task] = self._shortest[task], self._soonest[task]
            for _, edge in self._before[task]:
                delay[edge] = 0
            for _, edge in self._after[task]:
                delay[edge] = 0

    def put(self, task: int, place: Place) -> None:
        """Put a floating task on a lane; `update` is for the caller."""
        count, lanes = len(self.lane), self._lanes
        lane, row = place.lane, self.rows[place.lane]
        one = row[place.rank - 1] if place.rank else count + lane
        other = row[place.rank] if place.rank < len(row) else self._nothing
        self.behind[task], self.ahead[task] = one, other
        if one < count:
            self.ahead[one] = task
        if other < count:
            self.behind[other] = task
        row.insert(place.rank, task)
        self.lane[task] = lane
        self.duration[task] = self._duration_on[task][lane]
        self.earliest[task] = lanes.earliest[task][lane]
        for before, edge in self._before[task]:
            if self.lane[before] != AFLOAT:
                self.delay[edge] = lanes.outward(edge, self.lane[before])[lane]
        for after, edge in self._after[task]:
            if self.lane[after] != AFLOAT:
                self.delay[edge] = lanes.outward(edge, lane)[self.lane[after]]
        was = self.position[task]
        if was != place.position:
            self.order.pop(was)
            self.order.insert(place.position, task)
            self._renumber(min(was, place.position), max(was, place.position) + 1)

    def sort(self, key: Callable[[int], float]) -> None:
        """Reorder by a key that grows along every chain."""
        self.order.sort(key=key)
        self._renumber(0, len(self.order))

    def update(self, first: int = 0, last: int | None = None) -> None:
        """Compute `finish` from position `first` on, and `late` from position `last` back."""
        self.update_finish(first)
        self.update_late(last)

    def update_finish(self, first: int = 0) -> None:
        """Compute `finish` from position `first` on."""
        if self._locked:
            self._update_finish_locked()
            return
        finish, delay, behind, before = self.finish, self.delay, self.behind, self._before
        earliest, duration = self.earliest, self.duration
        for task in self.order[first:] if first else self.order:
            start = finish[behind[task]]
            if earliest[task] > start:
                start = earliest[task]
            for other, edge in before[task]:
                there = finish[other] + delay[edge]
                if there > start:
                    start = there
            finish[task] = start + duration[task]

    def update_late(self, last: int | None = None) -> None:
        """Compute `late` from position `last` back."""
        if self._locked:
            self._update_late_locked()
            return
        late, delay, ahead, after, duration = self.late, self.delay, self.ahead, self._after, self.duration
        for task in reversed(self.order if last is None else self.order[: last + 1]):
            end = late[ahead[task]]
            for other, edge in after[task]:
                there = late[other] - delay[edge]
                if there < end:
                    end = there
            late[task] = end - duration[task]

    def _update_finish_locked(self) -> None:
        finish, held = self.finish, dict[str, int]()
        for task in self.order:
            start = max(finish[self.behind[task]], self.earliest[task])
            for other, edge in self._before[task]:
                start = max(start, finish[other] + self.delay[edge])
            names = self._locks[task] if self.lane[task] != AFLOAT else ()
            for name in names:
                start = max(start, held.get(name, 0))
            finish[task] = start + self.duration[task]
            held.update(dict.fromkeys(names, finish[task]))

    def _update_late_locked(self) -> None:
        late, held = self.late, dict[str, int]()
        for task in reversed(self.order):
            end = late[self.ahead[task]]
            for other, edge in self._after[task]:
                end = min(end, late[other] - self.delay[edge])
            names = self._locks[task] if self.lane[task] != AFLOAT else ()
            for name in names:
                end = min(end, held.get(name, 0))
            late[task] = end - self.duration[task]
            held.update(dict.fromkeys(names, late[task]))

    def _renumber(self, first: int, last: int) -> None:
        position, order = self.position, self.order
        for index in range(first, last):
            position[order[index]] = index

    def best_place(self, task: int, lanes: Sequence[tuple[int, int]], *, soon: bool) -> Place:
        """Return the place of the shortest chain for a floating task, of equals the first found.

        `lanes` are those that may be taken, with the task's duration there, in the order in which equals win.
        Where several places of a lane are equally good, `soon` takes the first of them.
        """
        window = self._window(task)
        if self._locks[task]:
            return self._best_locked_place(task, lanes, window)
        low, high, ready, due = window
        finish, late = self.finish, self.late
        where, at, begins = finish.__getitem__, self.position.__getitem__, late.__getitem__
        # What a lane costs when nothing on it is in the way; a stable sort keeps the order of equals.
        hopes = [(ready[lane] + duration - due[lane], lane, duration) for lane, duration in lanes]
        hopes.sort(key=_FIRST)
        best, chosen, spot = _FAR, 0, 0
        for hope, lane, duration in hopes:
            if hope >= best:
                break
            row, start, end = self.rows[lane], ready[lane], due[lane]
            first = bisect_right(row, low, key=at)
            last = bisect_left(row, high, first, key=at)
            # Before `early` nothing of the lane delays the task; from `fit` on the task delays nothing of it.
            early = bisect_right(row, start, first, last, key=where)
            fit = bisect_left(row, end, first, last, key=begins)
            if fit <= early:
                early, fit = (fit, fit) if soon else (early, early)
            free = finish[row[early - 1] if early else len(self.lane) + lane]
            for index in range(early, fit + 1):
                begin = (free if free > start else start) + duration
                if begin >= best:
                    break
                if index < len(row):
                    after = row[index]
                    chain = begin - (late[after] if late[after] < end else end)
                    free = finish[after]
                else:
                    chain = begin - end
                if chain < best:
                    best, chosen, spot = chain, lane, index
        row = self.rows[chosen]
        after = max(low, at(row[spot - 1]) if spot else -1)
        until = min(high, at(row[spot]) if spot < len(row) else len(self.lane))
        now = at(task)
        # The position counts without the task itself.
        position = now if after < now < until else after if now <= after else until
        return Place(best, chosen, spot, position)

    def _window(self, task: int) -> Window:
        before, after = self._before[task], self._after[task]
        lanes, position, lane_of = self._lanes, self.position, self.lane
        low = max([position[other] for other, _ in before], default=-1)
        high = min([position[other] for other, _ in after], default=len(lane_of))
        ready, due = lanes.earliest[task], [0] * lanes.count
        # What says the same on every lane: neighbours afloat.
        ready_all, due_all = 0, 0
        finish, late = self.finish, self.late
        for other, edge in before:
            end = finish[other]
            if lane_of[other] == AFLOAT:
                if end > ready_all:
                    ready_all = end
            else:
                row = lanes.outward(edge, lane_of[other])
                ready = [r if r > end + delay else end + delay for r, delay in zip(ready, row)]  # noqa: B905
        for other, edge in after:
            begin = late[other]
            if lane_of[other] == AFLOAT:
                if begin < due_all:
                    due_all = begin
            else:
                row = lanes.inward(edge, lane_of[other])
                due = [d if d < begin - delay else begin - delay for d, delay in zip(due, row)]  # noqa: B905
        if ready_all:
            ready = [r if r > ready_all else ready_all for r in ready]
        if due_all:
            due = [d if d < due_all else due_all for d in due]
        return Window(low, high, ready, due)

    def _best_locked_place(self, task: int, lanes: Sequence[tuple[int, int]], window: Window) -> Place:
        """The same for a task with resources: its place among their holders counts as well."""
        low, high, ready, due = window
        position, count = self.position, len(self.lane)
        names, at = set(self._locks[task]), self.position.__getitem__
        holders = [
            other
            for other in self.order
            if self.lane[other] != AFLOAT and names.intersection(self._locks[other])
        ]
        free = [0, *accumulate((self.finish[other] for other in holders), max)]
        wanted = [0, *accumulate((self.late[other] for other in reversed(holders)), min)][::-1]
        best = Place(_FAR, 0, 0, 0)
        for lane, duration in lanes:
            row = self.rows[lane]
            cuts = [low, *(at(other) for other in (*row, *holders) if low < at(other) < high)]
            for cut in cuts:
                index, rank = bisect_right(row, cut, key=at), bisect_right(holders, cut, key=at)
                start = max(ready[lane], free[rank], self.finish[row[index - 1] if index else count + lane])
                end = min(due[lane], wanted[rank], self.late[row[index]] if index < len(row) else 0)
                if start + duration - end < best.chain_ms:
                    target = cut if position[task] <= cut else cut + 1
                    best = Place(start + duration - end, lane, index, target)
        return best
