"""Deadlines that are predicted to be missed, as a collaboration keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.core.ids import TaskId
from services.common.core.instants import Instant

#: Stands for a collaboration's own deadline where a task's name stands for the task's.
WHOLE = TaskId("")
#: Warnings of one collaboration that stand at once; further ones are not told.
STANDING_MAX = 64


class DeadlineWarning(NamedTuple):
    """One deadline that is predicted to be missed, as it was when that was first seen."""

    #: Whose deadline; WHOLE for the collaboration's own.
    task_id: TaskId
    deadline: Instant
    predicted_end: Instant
    #: The task that is late.
    cause: TaskId
    warn_time: Instant


class DeadlineView(NamedTuple):
    """That a warning began to stand, or is over, as watchers see it."""

    warning: DeadlineWarning
    #: When it was predicted to be met after all; None: the warning stands.
    recover_time: Instant | None


@dataclass(slots=True)
class Lateness:
    """What is late in one collaboration."""

    #: By whose deadline it is.
    standing: dict[TaskId, DeadlineWarning] = field(default_factory=dict)
    #: Which tasks are late, and for whose deadline.
    causes: dict[TaskId, TaskId] = field(default_factory=dict)
    #: How many tasks are late for each deadline; none of the numbers is 0.
    counts: dict[TaskId, int] = field(default_factory=dict)

    def add(self, task_id: TaskId, deadline_of: TaskId) -> None:
        """Note that a task is late; one that is noted already is passed over."""
        if task_id not in self.causes:
            self.causes[task_id] = deadline_of
            self.counts[deadline_of] = self.counts.get(deadline_of, 0) + 1

    def drop(self, task_id: TaskId) -> None:
        """Note that a task is not late (any more)."""
        deadline_of = self.causes.pop(task_id, None)
        if deadline_of is not None:
            self.counts[deadline_of] -= 1
            if not self.counts[deadline_of]:
                del self.counts[deadline_of]

    def over(self) -> list[DeadlineWarning]:
        """Return the standing warnings for which no task is late any more."""
        return [warning for task_id, warning in self.standing.items() if task_id not in self.counts]


def restored(warnings: Iterable[DeadlineWarning]) -> Lateness | None:
    """Return what stood under the leader before; None when nothing did."""
    standing = {warning.task_id: warning for warning in warnings}
    return Lateness(standing) if standing else None
