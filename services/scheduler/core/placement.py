"""Which ready task goes to which free agent: a function of a snapshot.

First policy: tasks by priority class, then by the longest chain of work that hangs on them (critical path
first), deadline and arrival. Each task goes to the agent with the largest score

    level (0 to 1, of the weakest required skill) + free share (0 to 1, of its slots)

so that a better or a less loaded agent wins; among equals the one that waited longest for work. The plan is a
proposal: `core.apply` verifies each placement against the state as it then is, and may accept a part.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NamedTuple

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.model import InstanceKey, TaskKey, TaskSpec


class Demand(NamedTuple):
    """What a task needs of an agent; tasks with the same demand share a queue."""

    skills: frozenset[Skill]
    #: If not empty, only these.
    agents: frozenset[AgentId]


def demand_of(spec: TaskSpec) -> Demand:
    """Return what a task needs of an agent."""
    return Demand(frozenset(spec.required_skills), frozenset(spec.required_agents))


class Order(NamedTuple):
    """The order in which ready tasks are served: smallest first."""

    priority: int
    negative_rank_ms: int
    deadline: Instant
    arrival: int


class WaitingTask(NamedTuple):
    """A ready task in the snapshot."""

    order: Order
    key: TaskKey
    demand: Demand


class FreeInstance(NamedTuple):
    """An instance that accepts attempts, in the snapshot."""

    #: Share of its slots in use.
    load: float
    #: When it last got an attempt; smaller waited longer.
    turn: int
    key: InstanceKey
    held: int
    free: int


class Candidates(NamedTuple):
    """Free instances that serve a demand equally well, best first."""

    #: Level of the weakest required skill.
    level: float
    #: Names the list in `Snapshot.groups`.
    group: int


class Snapshot(NamedTuple):
    """What a planner may look at. Bounded: no more tasks than could be served."""

    #: In serving order.
    tasks: tuple[WaitingTask, ...]
    groups: Mapping[int, tuple[FreeInstance, ...]]
    candidates: Mapping[Demand, tuple[Candidates, ...]]
    #: Instances with a free slot for each demand, for the explanation.
    choices: Mapping[Demand, int]


class Placement(NamedTuple):
    """One proposed assignment."""

    task: TaskKey
    instance: InstanceKey
    #: Named parts of the decision, for people.
    explanation: str


class Plan(NamedTuple):
    """Proposed assignments in serving order."""

    placements: tuple[Placement, ...]


def plan(snapshot: Snapshot) -> Plan:
    """Return a placement for every task of the snapshot that an agent is free for, in serving order."""
    taken: dict[InstanceKey, int] = {}
    groups = {group: _Group(rows, taken) for group, rows in snapshot.groups.items()}
    exhausted: set[Demand] = set()
    placements: list[Placement] = []
    for task in snapshot.tasks:
        if task.demand in exhausted:
            continue
        best: FreeInstance | None = None
        best_level = best_score = -1.0
        for level, group in snapshot.candidates[task.demand]:
            head = groups[group].head()
            if head is None:
                continue
            score = level + 1.0 - head.load
            if score > best_score or (score == best_score and best is not None and head.turn < best.turn):
                best, best_level, best_score = head, level, score
        if best is None:
            exhausted.add(task.demand)
            continue
        taken[best.key] = taken.get(best.key, 0) + 1
        placements.append(Placement(task.key, best.key, _explain(task, best, best_level, snapshot.choices)))
    return Plan(tuple(placements))


class _Group:
    """A heap of free instances in which loads grow as the plan takes slots."""

    def __init__(self, rows: tuple[FreeInstance, ...], taken: dict[InstanceKey, int]) -> None:
        self._rows = [(row, 0) for row in rows]
        heapq.heapify(self._rows)
        self._taken = taken

    def head(self) -> FreeInstance | None:
        """Return the best instance with a free slot, its load as the plan has left it."""
        rows = self._rows
        while rows:
            row, seen = rows[0]
            taken = self._taken.get(row.key, 0)
            if taken == seen:
                return row
            more = taken - seen
            if more >= row.free:
                heapq.heappop(rows)
            else:
                held, free = row.held + more, row.free - more
                aged = FreeInstance(held / (held + free), row.turn, row.key, held, free)
                heapq.heapreplace(rows, (aged, taken))
        return None


def _explain(task: WaitingTask, best: FreeInstance, level: float, choices: Mapping[Demand, int]) -> str:
    return (
        f"level {level:.2f} + free share {1.0 - best.load:.2f}, best of {choices[task.demand]} free; "
        f"priority {task.order.priority}, critical path {-task.order.negative_rank_ms} ms"
    )
