"""What a planner would be asked about a collaboration that were submitted now.

Agents count with the slots that they have: a free one from now on, a taken one from when its attempt is
expected to end. Waiting tasks of others that would be served first take their slots before; how they would be
placed is found by the same rule, the most urgent first, each where it ends first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.core.errors import FieldViolation, Reason, ServiceError
from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.course import Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import CollaborationSpec, InstanceKey, LockMode, TaskSpec, TaskState
from services.scheduler.core.placing.placement import demand_of
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.planning.pareto import Worth
from services.scheduler.core.planning.problem import Dependency, Problem
from services.scheduler.core.prediction import learning

#: Waiting tasks of others that are planned around; those served after them are not looked at.
AHEAD_MAX = 5_000
#: Slots of one agent that a plan uses: more run side by side than any plan of this size needs.
SLOTS_MAX = 64
_VIOLATIONS_MAX = 16


@dataclass(frozen=True, slots=True)
class Outlook:
    """A problem whose tasks are those of the specification, in its order."""

    problem: Problem
    worth: Worth
    #: The problem's agents.
    instances: tuple[InstanceKey, ...]
    tasks_ahead: int


def outlook(book: Book, spec: CollaborationSpec, now: Instant) -> Outlook:
    """Return the problem of planning `spec`, which has been validated, on the agents that are linked now.

    Raises UNKNOWN_SKILL naming each task that no linked agent could do.
    """
    instances = [one for one in book.instances.values() if one.free or (one.stream is not None and one.held)]
    instances = [one for one in instances if not one.draining]
    levels = _levels(spec.tasks, instances)
    slots = [_slots(book, one, now) for one in instances]
    most_urgent = max((spec.priority_of(task) for task in spec.tasks), default=spec.priority)
    ahead = _put_ahead(book, _waiting(book, most_urgent), instances, slots)
    # Only agents that could do something are the plan's business.
    useful = [number for number in range(len(instances)) if any(row[number] is not None for row in levels)]
    instances = [instances[number] for number in useful]
    slots = [slots[number] for number in useful]
    levels = [[row[number] for number in useful] for row in levels]
    index = {task.task_id: number for number, task in enumerate(spec.tasks)}
    problem = Problem(
        duration_ms=tuple(
            tuple(
                None if level is None else _duration_ms(book, task, instance)
                for level, instance in zip(row, instances, strict=True)
            )
            for task, row in zip(spec.tasks, levels, strict=True)
        ),
        dependencies=tuple(
            Dependency(index[before], index[task.task_id])
            for task in spec.tasks
            for before in dict.fromkeys(task.dependencies)
        ),
        slots_from_ms=tuple(tuple(sorted(heap)) for heap in slots),
        locks={
            number: exclusive
            for number, task in enumerate(spec.tasks)
            if (
                exclusive := frozenset(
                    str(claim.resource) for claim in task.resources if claim.mode is LockMode.EXCLUSIVE
                )
            )
        },
    )
    worth = Worth(
        quality=tuple(tuple(level or 0.0 for level in row) for row in levels),
        cost_per_hour=tuple(instance.cost for instance in instances),
    )
    return Outlook(problem, worth, tuple(one.key for one in instances), ahead)


def _levels(tasks: Sequence[TaskSpec], instances: Sequence[Instance]) -> list[list[float | None]]:
    rows: list[list[float | None]] = []
    missing: list[FieldViolation] = []
    for number, task in enumerate(tasks):
        demand = demand_of(task)
        row = [
            level_for(one.levels, demand) if not demand.agents or one.key.agent_id in demand.agents else None
            for one in instances
        ]
        if all(level is None for level in row):
            who = f" among {', '.join(sorted(demand.agents))}" if demand.agents else ""
            skills = ", ".join(sorted(demand.skills))
            missing.append(
                FieldViolation(
                    f"collaboration.tasks[{number}].required_skills",
                    f"no connected agent{who} has all of: {skills}; start one",
                )
            )
        rows.append(row)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        message = f"{missing[0].field}: {missing[0].description}{more}"
        raise ServiceError(Reason.UNKNOWN_SKILL, message, tuple(missing[:_VIOLATIONS_MAX]))
    return rows


def _duration_ms(book: Book, spec: TaskSpec, instance: Instance) -> int:
    """Return how long a task is expected to take on an instance: declared until the plane knows better."""
    return learning.mean_ms(book, spec, instance.key.agent_id)


def _slots(book: Book, instance: Instance, now: Instant) -> list[int]:
    """Return a heap of the instants after now from which the instance's slots are free."""
    taken = [_left_ms(book, task, instance, now) for task in instance.held.values()]
    slots = [0] * min(SLOTS_MAX, instance.free) + sorted(taken)
    return slots[:SLOTS_MAX]


def _left_ms(book: Book, task: Task, instance: Instance, now: Instant) -> int:
    attempt = task.current
    began = now if attempt is None else attempt.start_time or attempt.assign_time
    return max(1, _duration_ms(book, task.spec, instance) - max(0, now - began))


def _waiting(book: Book, least_urgent: int) -> list[Task]:
    """Return the tasks that wait for an agent now and would not be served after `least_urgent`."""
    waiting = (
        task
        for collaboration in book.collaborations.values()
        if not collaboration.ended
        for task in collaboration.open_tasks()
        if task.state is TaskState.READY and task.priority <= least_urgent
    )
    return heapq.nsmallest(AHEAD_MAX, waiting, key=lambda task: (task.priority, -task.rank_ms, task.arrival))


def _put_ahead(
    book: Book, tasks: Sequence[Task], instances: Sequence[Instance], slots: list[list[int]]
) -> int:
    """Let each task take the slot on which it ends first; return how many there were."""
    for task in tasks:
        options = [
            (slots[number][0] + _duration_ms(book, task.spec, instance), number)
            for number, instance in enumerate(instances)
            if slots[number]
            and (not task.demand.agents or instance.key.agent_id in task.demand.agents)
            and level_for(instance.levels, task.demand) is not None
        ]
        if options:
            finish, number = min(options)
            heapq.heapreplace(slots[number], finish)
    return len(tasks)
