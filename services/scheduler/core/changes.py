"""What watchers are told, and a collaboration's history keeps: values that never change any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from services.common.core.ids import AgentId, CollaborationId, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.model import CollaborationState, Failure, Payload, TaskState
from services.scheduler.core.running.deadlines import DeadlineView, DeadlineWarning

if TYPE_CHECKING:
    from services.scheduler.core.course import Attempt, Collaboration, Task


class SavepointNote(NamedTuple):
    """What views tell of a savepoint; the payload itself would stay in the history with every one of them."""

    attempt_number: int
    save_time: Instant
    #: Length of the payload.
    size_bytes: int


class TaskView(NamedTuple):
    """A task as it was at one generation. `task` gives what never changes: key and spec."""

    task: Task
    state: TaskState
    attempts: tuple[Attempt, ...]
    result: Payload | None
    failure: Failure | None
    generation: int
    ready_time: Instant | None
    end_time: Instant | None
    savepoint: SavepointNote | None


class CollaborationView(NamedTuple):
    """A collaboration as it was at one generation; `collaboration` gives what never changes."""

    collaboration: Collaboration
    state: CollaborationState
    generation: int
    end_time: Instant | None
    coordinator_agent: str
    members: tuple[AgentId, ...]
    succeeded_count: int
    failure: Failure | None
    warnings: tuple[DeadlineWarning, ...]


class Change(NamedTuple):
    """One durable change, as watchers see it."""

    collaboration_id: CollaborationId
    #: The collaboration's generation after the change.
    generation: int
    time: Instant
    subject: TaskView | CollaborationView | DeadlineView


class Progress(NamedTuple):
    """A live report of one attempt; not durable, may be skipped."""

    collaboration_id: CollaborationId
    task_id: TaskId
    attempt_number: int
    progress: float
    stage: str
    time: Instant
