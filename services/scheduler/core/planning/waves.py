"""MinMin, MaxMin and Sufferage: of all tasks that are ready, which one is placed next, and where.

Maheswaran, Ali, Siegel, Hensgen and Freund, "Dynamic mapping of a class of independent tasks onto
heterogeneous computing systems" (JPDC 59:2, 1999), on graphs: a task joins when all that it depends on is
placed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule, of_lanes

Times = npt.NDArray[np.int64]
#: Finish times [ready task, lane] -> the row of the task to place.
Choice = Callable[[Times], int]

_NEVER = np.int64(2**62)


def min_min(problem: Problem) -> Schedule:
    """The task that can end first, first."""
    return _in_waves(problem, lambda finish: int(finish.min(axis=1).argmin()))


def max_min(problem: Problem) -> Schedule:
    """The task whose best end is last, first."""
    return _in_waves(problem, lambda finish: int(finish.min(axis=1).argmax()))


def sufferage(problem: Problem) -> Schedule:
    """The task that loses most when its best lane is taken by another, first."""
    return _in_waves(problem, _suffers_most)


def _suffers_most(finish: Times) -> int:
    if finish.shape[1] < 2:
        return 0
    best = np.partition(finish, 1, axis=1)
    return int((best[:, 1] - best[:, 0]).argmax())


def _in_waves(problem: Problem, choose: Choice) -> Schedule:
    lanes, count = problem.lanes, len(problem.duration_ms)
    duration = np.full((count, lanes.count), _NEVER // 2, np.int64)
    for task, choices in enumerate(lanes.choices):
        for place, ms in choices:
            duration[task, place] = ms
    data_ready = np.array(lanes.earliest, np.int64).reshape(count, lanes.count)
    lane_free = np.zeros(lanes.count, np.int64)
    lock_free: dict[str, int] = {}
    lane, start_ms, finish_ms = [0] * count, [0] * count, [0] * count
    waits_for = [len(row) for row in problem.before]
    ready = [task for task in problem.tasks if not waits_for[task]]
    while ready:
        begin = np.maximum(data_ready[ready], lane_free)
        for row, task in enumerate(ready):
            if held := problem.locks.get(task):
                np.maximum(begin[row], max(lock_free.get(name, 0) for name in held), out=begin[row])
        finish = begin + duration[ready]
        row = choose(finish)
        where = int(finish[row].argmin())
        task = ready.pop(row)
        end = int(finish[row, where])
        lane[task], start_ms[task], finish_ms[task] = where, int(begin[row, where]), end
        lane_free[where] = end
        lock_free.update(dict.fromkeys(problem.locks.get(task, ()), end))
        for other, edge in problem.after[task]:
            np.maximum(data_ready[other], end + np.array(lanes.outward(edge, where)), out=data_ready[other])
            waits_for[other] -= 1
            if not waits_for[other]:
                ready.append(other)
    return of_lanes(problem, lane, start_ms, finish_ms)
