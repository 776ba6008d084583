"""Until when a task must have ended for all that depends on it to be in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.common.core.ids import TaskId
from services.common.core.instants import NEVER, Instant
from services.scheduler.core.intake.graph import topological_order
from services.scheduler.core.model import CollaborationSpec, TaskSpec
from services.scheduler.core.running.deadlines import WHOLE


class Due(NamedTuple):
    """Until when a task must have ended."""

    time: Instant
    #: The task whose deadline says so; WHOLE for the collaboration's own.
    deadline_of: TaskId


#: Of a task on which no deadline hangs.
FREE = Due(NEVER, WHOLE)


def due_times(spec: CollaborationSpec, dependents: Mapping[TaskId, Sequence[TaskId]]) -> dict[TaskId, Due]:
    """Return when each task is due that is: at its deadline, or earlier for the sake of a dependent.

    A dependent with the due instant d and the duration p leaves until d - p to what it depends on. Method:
    modified deadlines, Blazewicz, "Scheduling dependent tasks with different arrival times to meet deadlines"
    (1976).
    """
    dated = [task for task in spec.tasks if task.deadline is not None]
    if spec.deadline is None and not dated:
        return {}
    tasks = {task.task_id: task for task in spec.tasks}
    due: dict[TaskId, Due] = {}
    order = (
        topological_order({task.task_id: task.dependencies for task in spec.tasks})
        if dependents
        else [*tasks]
    )
    for task_id in reversed(order):
        found = _own(spec, tasks[task_id])
        for name in dependents.get(task_id, ()):
            if name in due:
                left = Instant(due[name].time - tasks[name].estimated_duration_ms)
                if left < found.time:
                    found = Due(left, due[name].deadline_of)
        if found.time != NEVER:
            due[task_id] = found
    return due


def _own(spec: CollaborationSpec, task: TaskSpec) -> Due:
    deadline = spec.deadline_of(task)
    if deadline is None:
        return FREE
    return Due(deadline, WHOLE if deadline == spec.deadline else task.task_id)
