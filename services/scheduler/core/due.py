"""Until when a task must have ended for all that depends on it to be in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.common.core.ids import TaskId
from services.common.core.instants import NEVER, Instant
from services.scheduler.core.graph import topological_order
from services.scheduler.core.model import CollaborationSpec


def due_times(
    spec: CollaborationSpec, dependents: Mapping[TaskId, Sequence[TaskId]]
) -> dict[TaskId, Instant]:
    """Return the due instant of each task that has one: its deadline, or earlier for the sake of a dependent.

    A dependent with the due instant d and the duration p leaves until d - p to what it depends on. Method:
    modified deadlines, Blazewicz, "Scheduling dependent tasks with different arrival times to meet deadlines"
    (1976).
    """
    if spec.deadline is None and all(task.deadline is None for task in spec.tasks):
        return {}
    tasks = {task.task_id: task for task in spec.tasks}
    due: dict[TaskId, Instant] = {}
    order = (
        topological_order({task.task_id: task.dependencies for task in spec.tasks})
        if dependents
        else [*tasks]
    )
    for task_id in reversed(order):
        own = spec.deadline_of(tasks[task_id])
        found = NEVER if own is None else own
        for name in dependents.get(task_id, ()):
            if name in due:
                found = min(found, Instant(due[name] - tasks[name].estimated_duration_ms))
        if found != NEVER:
            due[task_id] = found
    return due
