"""The aggregate of a completed collaboration: what its last tasks found, and who did what."""

from __future__ import annotations

from typing import NamedTuple

from services.common.core.ids import AgentId, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.course import Collaboration
from services.scheduler.core.model import AttemptState, CollaborationState, Payload


class Contribution(NamedTuple):
    """One completed task and who did it."""

    task_id: TaskId
    agent_id: AgentId
    attempt_number: int
    start_time: Instant
    end_time: Instant


class Result(NamedTuple):
    """The results of the sinks, and all contributions in order of completion."""

    outputs: dict[TaskId, Payload]
    contributions: tuple[Contribution, ...]


def aggregate(collaboration: Collaboration) -> Result | None:
    """Return the result of a COMPLETED collaboration, None for any other.

    A sink is a task on which no other depends: everything else was an input to one of them.
    """
    if collaboration.state is not CollaborationState.COMPLETED:
        return None
    outputs = {
        task_id: task.result
        for task_id, task in collaboration.tasks.items()
        if not task.dependents and task.result is not None
    }
    contributions = []
    for task_id in collaboration.succeeded:
        task = collaboration.tasks[task_id]
        # The newest one that succeeded: a speculative one beside it may be newer and have lost.
        attempt = next(each for each in reversed(task.attempts) if each.state is AttemptState.SUCCEEDED)
        end_time = task.end_time if task.end_time is not None else attempt.assign_time
        start_time = attempt.start_time if attempt.start_time is not None else attempt.assign_time
        contributions.append(
            Contribution(task_id, attempt.instance.agent_id, attempt.token.number, start_time, end_time)
        )
    return Result(outputs, tuple(contributions))
