"""Improves a schedule for as long as the caller likes: never worse than what it began with.

Method: large neighbourhood search by ruin and recreate (Schrimpf et al., "Record breaking optimization
results using the ruin and recreate principle", Journal of Computational Physics 159:2, 2000) under simulated
annealing. A step sets a few tasks afloat that belong together, mostly around a critical one, and puts each
back where the longest chain through it is shortest. With the heads and tails of `arrangement` that is exact,
for every place on every lane, at the price of two sweeps over the tasks. A step is given up as soon as a
bound says that it would not be accepted. Lanes are left out at random now and then ("blinks": Christiaens and
Vanden Berghe, Transportation Science 54:2, 2020), so that the greedy choice does not repeat itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from services.scheduler.core.planning.arrangement import Arrangement
from services.scheduler.core.planning.bounds import lower_bounds
from services.scheduler.core.planning.portfolio import best_of_classics
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule

#: Steps done -> the share of the budget that is spent; the search ends at 1. It is asked before every step,
#: and cools by the answer.
Spent = Callable[[int], float]

# Temperatures, as shares of the makespan begun with.
_HOT, _COLD = 0.01, 0.0002
# How many tasks a step moves: mostly a few, now and then up to this many, or all of a small problem.
_RUIN_MAX = 60
# The share of steps that begin with a critical task, and how a ruin grows: along data, along a lane, along
# the critical path, else anywhere.
_CRITICAL, _DATA, _LANE, _PATH = 0.8, 0.5, 0.8, 0.95
_BLINK = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ends with."""

    schedule: Schedule
    #: No schedule has a shorter makespan than this.
    bound_ms: int
    steps: int

    @property
    def is_optimal(self) -> bool:
        """Whether the schedule is known to be the best; it may be so unknown."""
        return self.schedule.makespan_ms <= self.bound_ms


def steps(limit: int) -> Spent:
    """Return a budget of so many steps: the same seed then gives the same schedule on every machine."""
    return lambda done: done / limit


def plan(problem: Problem, spent: Spent, seed: int = 0) -> Found:
    """Return the best schedule found from the best of the classic heuristics on."""
    return improve(problem, best_of_classics(problem), spent, seed)


def improve(problem: Problem, incumbent: Schedule, spent: Spent, seed: int = 0) -> Found:
    """Return the best schedule found from `incumbent` on, which must be valid; at worst itself.

    The answer depends on the arguments alone: of equal answers of `spent` follow equal schedules. The search
    ends early when a lower bound shows that nothing better is left.
    """
    bound_ms = lower_bounds(problem).best_ms
    if incumbent.makespan_ms <= bound_ms:
        return Found(incumbent, bound_ms, 0)
    walk = _Walk(problem, incumbent, seed)
    done = 0
    while walk.best_ms > bound_ms and (share := spent(done)) < 1:
        walk.step(incumbent.makespan_ms * _HOT * (_COLD / _HOT) ** share)
        done += 1
    found = walk.best()
    # An arrangement starts every task as soon as it can, which is never later than the incumbent did.
    return Found(found, bound_ms, done)


class _Walk:
    """A walk through arrangements that remembers the best one."""

    def __init__(self, problem: Problem, incumbent: Schedule, seed: int) -> None:
        self._before, self._after = problem.before, problem.after
        self._tasks = len(problem.duration_ms)
        self._random = random.Random(seed)
        self._choices = [list(choices) for choices in problem.lanes.choices]
        self._now = Arrangement(problem, incumbent)
        self._now_ms = self.best_ms = self._now.makespan_ms
        self._kept = self._best = self._now.save()
        self._critical = self._now.critical()
        self._ruin_max = max(10, min(self._tasks, _RUIN_MAX))

    def best(self) -> Schedule:
        """Return the best schedule seen; the walk is over with that."""
        self._now.restore(self._best)
        return self._now.schedule()

    def step(self, temperature_ms: float) -> None:
        """Ruin, recreate, and keep the outcome or what was before."""
        now, chance = self._now, self._random.random
        # The makespan that would still be accepted: Metropolis' rule, drawn first so that bounds can use it.
        limit_ms = self._now_ms - temperature_ms * math.log(1.0 - chance())
        ruined = self._ruined()
        positions = [now.position[task] for task in ruined]
        now.set_afloat(ruined)
        now.update_finish(min(positions))
        if now.makespan_ms > limit_ms or not self._recreate(ruined, max(positions), limit_ms):
            now.restore(self._kept)
            return
        self._now_ms = now.makespan_ms
        # Any mixture of earliest and latest starts is an order; each lets other places be seen.
        share, finish, duration, late = chance(), now.finish, now.duration, now.late
        now.sort(lambda task: share * (finish[task] - duration[task]) + (1 - share) * late[task])
        self._kept, self._critical = now.save(), now.critical()
        if self._now_ms < self.best_ms:
            self.best_ms, self._best = self._now_ms, self._kept

    def _ruined(self) -> list[int]:
        """Return tasks that belong together: neighbours by data, by lane or on the critical path."""
        chance, now, tasks = self._random.random, self._now, self._tasks
        count = min(tasks, 1 + int(chance() ** 4 * self._ruin_max))
        critical = self._critical
        first = critical[int(chance() * len(critical))] if chance() < _CRITICAL else int(chance() * tasks)
        # A dictionary keeps the order, and so the answer.
        chosen = {first: None}
        while len(chosen) < count:
            task, way = list(chosen)[int(chance() * len(chosen))], chance()
            other = int(chance() * tasks)
            if way < _DATA:
                near = self._before[task] + self._after[task]
                if near:
                    other = near[int(chance() * len(near))][0]
            elif way < _LANE:
                row = now.rows[now.lane[task]]
                index = row.index(task) + (1 if chance() < 0.5 else -1)
                if 0 <= index < len(row):
                    other = row[index]
            elif way < _PATH:
                other = critical[int(chance() * len(critical))]
            if other in chosen and chance() < 0.1:
                break
            chosen[other] = None
        return list(chosen)

    def _recreate(self, tasks: list[int], last: int, limit_ms: float) -> bool:
        """Put the tasks back; False as soon as the makespan is known to pass the limit."""
        now, chance = self._now, self._random.random
        now.update_late(last)
        self._arrange(tasks)
        soon = chance() < 0.5
        for rank, task in enumerate(tasks, 1):
            place = now.best_place(task, self._lanes(task), soon=soon)
            if place.chain_ms > limit_ms:
                return False
            was = now.position[task]
            now.put(task, place)
            now.update_finish(min(was, place.position))
            # With the last one back the makespan is known; tails are for what is kept.
            if rank == len(tasks) and now.makespan_ms > limit_ms:
                return False
            now.update_late(max(was, place.position))
        return True

    def _arrange(self, tasks: list[int]) -> None:
        """Order the tasks for their return: mostly those first that most hangs on."""
        chance, late = self._random.random(), self._now.late
        if chance < 0.6:
            tasks.sort(key=lambda task: late[task])
        elif chance < 0.8:
            tasks.sort(key=lambda task: -late[task])
        else:
            self._random.shuffle(tasks)

    def _lanes(self, task: int) -> list[tuple[int, int]]:
        """Return the lanes to look at, equals in another order each time."""
        choices, chance = self._choices[task], self._random.random
        if len(choices) == 1:
            return choices
        # Turning the list is a tenth of the price of shuffling it, and enough to let another equal win.
        turn = int(chance() * len(choices))
        turned = choices[turn:] + choices[:turn]
        return [choice for choice in turned if chance() >= _BLINK] or choices
