"""The optimum of a tiny problem by looking at everything: branch and bound over orders and agents."""

from __future__ import annotations

from services.scheduler.core.planning.problem import Problem


def optimum_ms(problem: Problem, reached_ms: int) -> int:
    """Return the shortest makespan; `reached_ms` is one that can be reached.

    Some shortest schedule starts every task as early as its lane and its data allow, in the order of their
    starts, so it is enough to append tasks in every order that the graph permits. For a handful of tasks.
    """
    best = reached_ms
    network, agents = problem.network, list(problem.agents)
    shortest = [min(ms for ms in row if ms is not None) for row in problem.duration_ms]
    tail = [0] * len(shortest)
    for task in reversed(problem.order):
        behind = max((tail[other] for other, _ in problem.after[task]), default=0)
        tail[task] = shortest[task] + behind
    finish: dict[int, int] = {}
    where: dict[int, int] = {}
    free = {agent: slots[0] for agent, slots in enumerate(problem.slots_from_ms)}

    def extend() -> None:
        nonlocal best
        if len(finish) == len(tail):
            best = min(best, max(finish.values(), default=0))
            return
        for task in problem.tasks:
            if task in finish or any(other not in finish for other, _ in problem.before[task]):
                continue
            for agent in agents:
                duration = problem.duration_ms[task][agent]
                if duration is None:
                    continue
                start = free[agent]
                for other, edge in problem.before[task]:
                    size = problem.dependencies[edge].size_bytes
                    delay = network.delay_ms(size, where[other], agent) if network else 0
                    start = max(start, finish[other] + delay)
                if start + duration + tail[task] - shortest[task] >= best:
                    continue
                before, free[agent] = free[agent], start + duration
                finish[task], where[task] = start + duration, agent
                extend()
                free[agent] = before
                del finish[task], where[task]

    extend()
    return best
