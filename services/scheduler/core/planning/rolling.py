"""A plan carried over to another moment: the same agents and order, with the times that are true then."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.scheduler.core.planning.lists import heft
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule
from services.scheduler.core.planning.search import Spent, improve
from services.scheduler.core.planning.timeline import Draft

#: For each task (place in the order, agent); None for a task that the plan does not know.
Places = Sequence[tuple[int, int] | None]


class Improved(NamedTuple):
    """What a search made of a plan, both carried over to the problem it was given."""

    before: Schedule
    after: Schedule


def carry_over(problem: Problem, places: Places) -> Schedule:
    """Return the schedule in which each task has the agent of `places`, in that order as far as it can be.

    A task without a place, or whose agent may not have it (any more), goes where it ends first, after the
    others that are ready with it.
    """
    last = len(problem.duration_ms)
    rank = [last if place is None else place[0] for place in places]
    agent = problem.lanes.agent
    draft = Draft(problem)
    for task in _in_order(problem, rank.__getitem__):
        options = draft.options(task)
        place = places[task]
        if place is not None:
            options = [option for option in options if agent[option[1]] == place[1]] or options
        draft.place(task, min(options))
    return draft.schedule()


def places_of(schedule: Schedule) -> list[tuple[int, int] | None]:
    """Return what of a schedule is carried over."""
    starts = sorted(range(len(schedule.slots)), key=lambda task: (schedule.slots[task].start_ms, task))
    places: list[tuple[int, int] | None] = [None] * len(starts)
    for number, task in enumerate(starts):
        places[task] = number, schedule.slots[task].agent
    return places


def better(problem: Problem, places: Places | None, spent: Spent, seed: int = 0) -> Improved:
    """Search from a plan on, or from what list scheduling gives if that is better or there is no plan."""
    rule = heft(problem)
    before = rule if places is None else carry_over(problem, places)
    start = min(before, rule, key=lambda each: each.makespan_ms)
    return Improved(before, improve(problem, start, spent, seed).schedule)


def _in_order(problem: Problem, rank: Callable[[int], int]) -> list[int]:
    """Return a topological order that follows `rank` where it can."""
    waits_for = [len(row) for row in problem.before]
    ready = [(rank(task), task) for task in problem.tasks if not waits_for[task]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, task = heapq.heappop(ready)
        order.append(task)
        for other, _ in problem.after[task]:
            waits_for[other] -= 1
            if not waits_for[other]:
                heapq.heappush(ready, (rank(other), other))
    return order
