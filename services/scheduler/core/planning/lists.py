"""The classic list heuristics: order the tasks, then give each its best place in the gaps that are left."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from services.scheduler.core.planning import ranks
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule
from services.scheduler.core.planning.timeline import Draft


def heft(problem: Problem) -> Schedule:
    """Heterogeneous Earliest Finish Time: by upward rank, each where it ends first.

    Topcuoglu, Hariri and Wu (IEEE TPDS 13:3, 2002).
    """
    rank = ranks.upward_ms(problem, ranks.mean_durations_ms(problem), ranks.mean_delays_ms(problem))
    return in_order(problem, ranks.by_falling(rank, problem.order))


def in_order(problem: Problem, order: Sequence[int]) -> Schedule:
    """Place tasks in a topological order, each where it ends first."""
    draft = Draft(problem)
    for task in order:
        draft.place(task, min(draft.options(task)))
    return draft.schedule()


def cpop(problem: Problem) -> Schedule:
    """Critical Path on a Processor: the critical path on one agent, the others where they end first.

    Topcuoglu, Hariri and Wu (IEEE TPDS 13:3, 2002). A task of the critical path that this agent may not have
    goes where it ends first.
    """
    durations, delays = ranks.mean_durations_ms(problem), ranks.mean_delays_ms(problem)
    upward = ranks.upward_ms(problem, durations, delays)
    downward = ranks.downward_ms(problem, durations, delays)
    priority = [up + down for up, down in zip(upward, downward, strict=True)]
    critical = _critical_path(problem, priority)
    lanes = _lanes_of(problem, _fastest_agent(problem, critical))
    draft = Draft(problem)
    waits_for = [len(row) for row in problem.before]
    ready = [(-priority[task], task) for task in problem.tasks if not waits_for[task]]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        options = draft.options(task, lanes) if task in critical else []
        draft.place(task, min(options or draft.options(task)))
        for other, _ in problem.after[task]:
            waits_for[other] -= 1
            if not waits_for[other]:
                heapq.heappush(ready, (-priority[other], other))
    return draft.schedule()


def peft(problem: Problem) -> Schedule:
    """Predict Earliest Finish Time: looks ahead by a table of optimistic costs.

    Arabnejad and Barbosa, "List scheduling algorithm for heterogeneous systems by an optimistic cost table"
    (IEEE TPDS 25:3, 2014).
    """
    table = _optimistic_costs(problem)
    rank = [sum(row) / len(row) for row in table]
    agent = problem.lanes.agent
    draft = Draft(problem)
    waits_for = [len(row) for row in problem.before]
    ready = [(-rank[task], task) for task in problem.tasks if not waits_for[task]]
    heapq.heapify(ready)
    while ready:
        _, task = heapq.heappop(ready)
        costs = table[task]
        option = min(draft.options(task), key=lambda option: (option[0] + costs[agent[option[1]]], option))
        draft.place(task, option)
        for other, _ in problem.after[task]:
            waits_for[other] -= 1
            if not waits_for[other]:
                heapq.heappush(ready, (-rank[other], other))
    return draft.schedule()


def fastest_agent(problem: Problem) -> Schedule:
    """Everything on the agent that does it fastest; what it may not have goes where it ends first."""
    lanes = _lanes_of(problem, _fastest_agent(problem, frozenset(problem.tasks)))
    draft = Draft(problem)
    for task in problem.order:
        draft.place(task, min(draft.options(task, lanes) or draft.options(task)))
    return draft.schedule()


def _critical_path(problem: Problem, priority: Sequence[float]) -> frozenset[int]:
    entries = [task for task in problem.tasks if not problem.before[task]]
    path: list[int] = []
    candidates = entries
    while candidates:
        # All tasks of the path have the same priority; sums of floats are compared by the largest.
        task = max(candidates, key=priority.__getitem__)
        path.append(task)
        candidates = [other for other, _ in problem.after[task]]
    return frozenset(path)


def _fastest_agent(problem: Problem, tasks: frozenset[int]) -> int:
    def cost(agent: int) -> tuple[int, int, int]:
        known = [ms for task in tasks if (ms := problem.duration_ms[task][agent]) is not None]
        return len(tasks) - len(known), sum(known), agent

    return min((agent for agent in problem.agents if problem.slots_from_ms[agent]), key=cost, default=0)


def _lanes_of(problem: Problem, agent: int) -> list[int]:
    return [lane for lane, owner in enumerate(problem.lanes.agent) if owner == agent]


def _optimistic_costs(problem: Problem) -> list[list[float]]:
    """Return [task][agent]: the least that must follow after the task when it runs there."""
    delays = ranks.mean_delays_ms(problem)
    table = [[0.0] * len(problem.slots_from_ms) for _ in problem.tasks]
    for task in reversed(problem.order):
        row = table[task]
        for other, edge in problem.after[task]:
            behind = [
                float("inf") if ms is None else ms + cost
                for ms, cost in zip(problem.duration_ms[other], table[other], strict=True)
            ]
            elsewhere = min(behind) + delays[edge]
            for agent, here in enumerate(behind):
                row[agent] = max(row[agent], min(here, elsewhere))
    return table
