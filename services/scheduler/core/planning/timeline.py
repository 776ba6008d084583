"""A schedule in the making: tasks are put one by one where their lane and their resources are free.

With insertion a task may go into a gap that earlier ones left, as in HEFT; without it a lane is only added to
at its end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from services.scheduler.core.planning import schedule
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule


class Timeline:
    """When one lane or one resource is taken: intervals that do not overlap, in order."""

    __slots__ = ("_finish", "_start")

    def __init__(self) -> None:
        self._start: list[int] = []
        self._finish: list[int] = []

    def earliest_ms(self, ready_ms: int, duration_ms: int) -> int:
        """Return the first instant from `ready_ms` on at which `duration_ms` are free."""
        starts, finishes = self._start, self._finish
        instant = ready_ms
        for index in range(bisect_right(finishes, ready_ms), len(starts)):
            if instant + duration_ms <= starts[index]:
                break
            instant = max(instant, finishes[index])
        return instant

    def take(self, start_ms: int, finish_ms: int) -> None:
        """Note that the interval is taken; it must be free."""
        index = bisect_right(self._start, start_ms)
        self._start.insert(index, start_ms)
        self._finish.insert(index, finish_ms)

    @property
    def end_ms(self) -> int:
        """When it is free for good."""
        return self._finish[-1] if self._finish else 0


class Draft:
    """A schedule in the making. A task may be placed when all that it depends on has been."""

    def __init__(self, problem: Problem, *, insertion: bool = True) -> None:
        self._problem, self._lanes, self._insertion = problem, problem.lanes, insertion
        self._lane_times = [Timeline() for _ in range(problem.lanes.count)]
        self._lock_times = {name: Timeline() for names in problem.locks.values() for name in names}
        self.lane = [0] * len(problem.duration_ms)
        self.start_ms = [0] * len(problem.duration_ms)
        self.finish_ms = [0] * len(problem.duration_ms)

    def ready_ms(self, task: int) -> list[int]:
        """Return for each lane when what the task needs is there."""
        ready = list(self._lanes.earliest[task])
        for other, edge in self._problem.before[task]:
            finish = self.finish_ms[other]
            for lane, delay in enumerate(self._lanes.outward(edge, self.lane[other])):
                ready[lane] = max(ready[lane], finish + delay)
        return ready

    def options(self, task: int, lanes: Iterable[int] | None = None) -> list[tuple[int, int, int]]:
        """Return (finish, lane, start) of the task on each lane that may have it, or on those of `lanes`."""
        ready = self.ready_ms(task)
        wanted = None if lanes is None else frozenset(lanes)
        found = []
        for lane, duration in self._lanes.choices[task]:
            if wanted is None or lane in wanted:
                start = self._start_ms(task, lane, ready[lane], duration)
                found.append((start + duration, lane, start))
        return found

    def place(self, task: int, option: tuple[int, int, int]) -> None:
        """Place the task as one of its options says."""
        finish, lane, start = option
        self.lane[task], self.start_ms[task], self.finish_ms[task] = lane, start, finish
        self._lane_times[lane].take(start, finish)
        for name in self._problem.locks.get(task, ()):
            self._lock_times[name].take(start, finish)

    def schedule(self) -> Schedule:
        """Return what was made, when all tasks are placed."""
        return schedule.of_lanes(self._problem, self.lane, self.start_ms, self.finish_ms)

    def _start_ms(self, task: int, lane: int, ready_ms: int, duration_ms: int) -> int:
        times = [self._lane_times[lane]]
        times += [self._lock_times[name] for name in self._problem.locks.get(task, ())]
        if not self._insertion:
            return max(ready_ms, *(time.end_ms for time in times))
        instant, settled = ready_ms, False
        # Each that has no room moves the instant on, which the others must look at again.
        while not settled:
            before = instant
            for time in times:
                instant = time.earliest_ms(instant, duration_ms)
            settled = instant == before or len(times) == 1
        return instant
