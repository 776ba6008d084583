"""What the store keeps of a collaboration, a task and a lock: plain values, as they were at one commit."""

from __future__ import annotations

from typing import NamedTuple

from services.common.core.ids import CollaborationId, ResourceName, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.course import Attempt, Collaboration, Savepoint, Task, Trial
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationState,
    Failure,
    InstanceKey,
    LockMode,
    Payload,
    Priority,
    Submission,
    TaskState,
)
from services.scheduler.core.running.deadlines import DeadlineWarning


class TaskRecord(NamedTuple):
    """A task's mutable half; a task without a record never changed since its submission."""

    task_id: TaskId
    state: TaskState
    generation: int
    #: The collaboration's generation at the task's last change: the order in which tasks ended.
    collaboration_generation: int
    attempts: tuple[Attempt, ...]
    attempt_count: int
    failure_count: int
    result: Payload | None
    failure: Failure | None
    ready_time: Instant | None
    end_time: Instant | None
    retry_time: Instant | None
    cause_id: str
    savepoint: Savepoint | None = None
    excused_count: int = 0


class CollaborationRecord(NamedTuple):
    """A collaboration's own mutable half."""

    collaboration_id: CollaborationId
    state: CollaborationState
    generation: int
    end_time: Instant | None
    coordinator_agent: str
    failure: Failure | None
    #: Deadlines that are predicted to be missed.
    warnings: tuple[DeadlineWarning, ...] = ()
    trial: Trial | None = None


class SpecRecord(NamedTuple):
    """A collaboration's immutable half."""

    collaboration_id: CollaborationId
    submission: Submission
    submit_time: Instant
    #: Place in the order of submission.
    arrival: int


#: Bytes up to which the specification of a single task is written again with each change of it.
SMALL_BYTES_MAX = 1_024


def is_small(submission: Submission) -> bool:
    """Return whether all that is kept of a collaboration is written together, whenever any of it changes.

    Most collaborations have one task: one write for it costs the store half of what two or three do, as long
    as what never changes is short.
    """
    tasks = submission.spec.tasks
    return (
        len(tasks) == 1
        and len(tasks[0].encoded) + len(submission.spec.shared_context.data) <= SMALL_BYTES_MAX
    )


class StoredCollaboration(NamedTuple):
    """Everything that the store keeps of one collaboration."""

    spec: SpecRecord
    record: CollaborationRecord
    tasks: tuple[TaskRecord, ...]


class StoredLock(NamedTuple):
    """One claim that was granted, as the store keeps it: one key."""

    resource: ResourceName
    #: The same for all claims of one request.
    claim_id: str
    mode: LockMode
    instance: InstanceKey
    #: None when it was taken outside of attempts.
    attempt: AttemptRef | None
    #: True: claimed by the task's specification; False: by the agent's code.
    declared: bool
    priority: Priority
    since: Instant
    #: The leadership under which it was granted.
    epoch: int
    #: The key's create revision; 0 before it is durable.
    revision: int = 0


def task_record(task: Task) -> TaskRecord:
    """Return what is to be kept of a task."""
    return TaskRecord(
        task.key.task_id,
        task.state,
        task.generation,
        task.collaboration_generation,
        task.attempts,
        task.attempt_count,
        task.failure_count,
        task.result,
        task.failure,
        task.ready_time,
        task.end_time,
        task.retry_time,
        task.cause_id,
        task.savepoint,
        task.excused_count,
    )


def collaboration_record(collaboration: Collaboration) -> CollaborationRecord:
    """Return what is to be kept of a collaboration itself."""
    return CollaborationRecord(
        collaboration.collaboration_id,
        collaboration.state,
        collaboration.generation,
        collaboration.end_time,
        collaboration.coordinator_agent,
        collaboration.failure,
        collaboration.warnings,
        collaboration.trial,
    )


def spec_record(collaboration: Collaboration) -> SpecRecord:
    """Return what never changes of a collaboration."""
    return SpecRecord(
        collaboration.collaboration_id,
        collaboration.submission,
        collaboration.submit_time,
        collaboration.arrival,
    )
