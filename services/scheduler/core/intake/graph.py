"""What a dependency graph says about order and time: cycles, levels, ranks, the critical path, slack.

Every function takes `deps`, each task with the tasks that it depends on, and needs time linear in tasks
plus dependencies. Nothing recurses, so a chain of ten thousand tasks is as good as any other graph. Ties
are broken by the order in which `deps` names the tasks: the same mapping gives the same answer. A
dependency that is not itself a key of `deps` counts as absent; `validation` has reported it by then.

Durations are in milliseconds and must be there for every task. All functions but `find_cycle` raise
`ValueError` for a graph with a cycle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.common.core.ids import TaskId

Dependencies = Mapping[TaskId, Sequence[TaskId]]
Durations = Mapping[TaskId, int]


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The chain of tasks that no plan can beat, however many agents there are."""

    # First task first.
    tasks: tuple[TaskId, ...]
    # The sum of the tasks' durations.
    length_ms: int


def find_cycle(deps: Dependencies) -> list[TaskId] | None:
    """Return one closed walk `[a, b, a]` in which each task depends on the next, or None.

    Method: depth-first search with the three colours of Cormen et al., "Introduction to Algorithms".
    """
    finished: set[TaskId] = set()
    for root in deps:
        if root in finished:
            continue
        # The walk from the root to the task being looked at, each with what is left of its dependencies.
        walk: dict[TaskId, Iterator[TaskId]] = {root: iter(deps[root])}
        while walk:
            task = next(reversed(walk))
            for dependency in walk[task]:
                if dependency in walk:
                    members = list(walk)
                    return [*members[members.index(dependency) :], dependency]
                if dependency in deps and dependency not in finished:
                    walk[dependency] = iter(deps[dependency])
                    break
            else:
                finished.add(task)
                del walk[task]
    return None


def topological_order(deps: Dependencies) -> list[TaskId]:
    """Return all tasks, every one after those that it depends on.

    Method: Kahn, "Topological sorting of large networks" (CACM 5:11, 1962).
    """
    dependents = _dependents(deps)
    waits_for = {task: sum(1 for _ in _known(deps, task)) for task in deps}
    ready = deque(task for task, count in waits_for.items() if count == 0)
    order: list[TaskId] = []
    while ready:
        task = ready.popleft()
        order.append(task)
        for dependent in dependents[task]:
            waits_for[dependent] -= 1
            if waits_for[dependent] == 0:
                ready.append(dependent)
    if len(order) < len(deps):
        raise ValueError("the graph has a cycle; find_cycle names it")
    return order


def levels(deps: Dependencies) -> list[list[TaskId]]:
    """Return the tasks by the length of the longest chain below them.

    The first level depends on nothing; each later one on at least one task of the level before. Tasks of
    one level can run at the same time.
    """
    level: dict[TaskId, int] = {}
    for task in topological_order(deps):
        level[task] = max((level[d] + 1 for d in _known(deps, task)), default=0)
    rows: list[list[TaskId]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for task in deps:
        rows[level[task]].append(task)
    return rows


def earliest_finish(deps: Dependencies, duration_ms: Durations) -> dict[TaskId, int]:
    """Return when each task ends at the earliest, in milliseconds after the start.

    No plan does better, with any number of agents: this is the bound that a deadline is held against.
    """
    finish: dict[TaskId, int] = {}
    for task in topological_order(deps):
        start = max((finish[d] for d in _known(deps, task)), default=0)
        finish[task] = start + duration_ms[task]
    return finish


def upward_ranks(deps: Dependencies, duration_ms: Durations) -> dict[TaskId, int]:
    """Return the length in milliseconds of the longest chain from each task's start to the end.

    Method: HEFT's upward rank with no cost of communication, rank(t) = duration(t) + max rank(dependent);
    Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
    computing" (IEEE TPDS 13:3, 2002). A task never ranks below one that depends on it, so taking tasks by
    falling rank serves the critical path first.
    """
    dependents = _dependents(deps)
    rank: dict[TaskId, int] = {}
    for task in reversed(topological_order(deps)):
        rank[task] = duration_ms[task] + max((rank[d] for d in dependents[task]), default=0)
    return rank


def critical_path(deps: Dependencies, duration_ms: Durations) -> CriticalPath:
    """Return the longest chain; of equally long ones the one that `deps` names first, task by task.

    Method: critical path method; Kelley and Walker, "Critical-path planning and scheduling" (1959).
    """
    rank = upward_ranks(deps, duration_ms)
    dependents = _dependents(deps)
    entries = [task for task in deps if next(_known(deps, task), None) is None]
    tasks: list[TaskId] = []
    candidates: Sequence[TaskId] = entries
    while candidates:
        # max keeps the first of equals.
        task = max(candidates, key=rank.__getitem__)
        tasks.append(task)
        candidates = dependents[task]
    return CriticalPath(tuple(tasks), rank[tasks[0]] if tasks else 0)


def slack(deps: Dependencies, duration_ms: Durations) -> dict[TaskId, int]:
    """Return by how many milliseconds each task may be late without making the whole later.

    Zero for every task on a critical path. Agents are taken as unlimited.
    """
    finish = earliest_finish(deps, duration_ms)
    rank = upward_ranks(deps, duration_ms)
    whole = max(finish.values(), default=0)
    # The longest chain through a task: what ends with it, then what begins with it, itself counted once.
    return {task: whole - (finish[task] - duration_ms[task] + rank[task]) for task in deps}


def _known(deps: Dependencies, task: TaskId) -> Iterator[TaskId]:
    """Yield what `task` depends on and `deps` knows, each once, in the order written."""
    return (dependency for dependency in dict.fromkeys(deps[task]) if dependency in deps)


def _dependents(deps: Dependencies) -> dict[TaskId, list[TaskId]]:
    """Return for each task those that depend on it, in the order of `deps`."""
    dependents: dict[TaskId, list[TaskId]] = {task: [] for task in deps}
    for task in deps:
        for dependency in _known(deps, task):
            dependents[dependency].append(task)
    return dependents
