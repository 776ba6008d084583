"""What the core asks of the outside.

The driver carries effects out in three groups and in this order: *writes* and *entries* are made durable,
then *sends* go out, then *answers*. Effects that name a live `Task` or `Collaboration` mean its value at the
end of the batch; one write per subject is enough, however often it changed.

They are plain classes and not tuples: a task leaves two dozen of them, and each is made in half the time.
Nobody changes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.core.entries import EntryDraft
from services.common.core.errors import ServiceError
from services.common.core.ids import CollaborationId, ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.changes import Change, Progress
from services.scheduler.core.course import Attempt, Collaboration, Task
from services.scheduler.core.events import HeldLock, ReplyId, StreamId
from services.scheduler.core.model import AttemptRef, InstanceKey
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.rolling import Places
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.core.prediction.cells import Learned, LearnedKey
from services.scheduler.core.records import StoredLock

# Writes.


@dataclass(slots=True)
class SaveSpecs:
    """A new collaboration's immutable half."""

    collaboration: Collaboration


@dataclass(slots=True)
class SaveCollaboration:
    """A collaboration's own mutable half."""

    collaboration: Collaboration


@dataclass(slots=True)
class SaveTask:
    """A task's mutable half."""

    task: Task


@dataclass(slots=True)
class Forget:
    """Everything about a collaboration whose retention is over."""

    collaboration_id: CollaborationId


@dataclass(slots=True)
class PutLock:
    """A granted claim; it counts when `LocksWritten` comes back."""

    lock: StoredLock


@dataclass(slots=True)
class DeleteLock:
    """A claim that ended."""

    resource: ResourceName
    claim_id: str


@dataclass(slots=True)
class SaveLearned:
    """One record of what was learned, as it is now; None deletes it."""

    key: LearnedKey
    value: Learned | None


@dataclass(slots=True)
class EndLease:
    """An instance is gone for good: the lease of its locks may end."""

    instance: InstanceKey


# Searches.


@dataclass(slots=True)
class SearchPlan:
    """Look for a better plan beside the loop; `PlanFound` under the same number comes back."""

    number: int
    problem: Problem
    #: The standing plan; None when there is none.
    places: Places | None
    budget_ms: int


# Sends, to one Work stream.


@dataclass(slots=True)
class Welcome:
    """The stream is accepted."""

    stream: StreamId


@dataclass(slots=True)
class Assign:
    """Hand an attempt over."""

    stream: StreamId
    #: Kept alive until the assignment is on its way.
    collaboration: Collaboration
    task: Task
    attempt: Attempt
    locks: tuple[HeldLock, ...]


@dataclass(slots=True)
class CancelAttempt:
    """Ask an agent to stop an attempt that is no longer current."""

    stream: StreamId
    attempt: AttemptRef
    reason: str


@dataclass(slots=True)
class SuspendAttempt:
    """Ask an agent to save and stop an attempt; its slot is the scheduler's from now on."""

    stream: StreamId
    attempt: AttemptRef
    reason: str
    grace_ms: int


@dataclass(slots=True)
class AckSavepoint:
    """A savepoint is committed, or refused with a definite error."""

    stream: StreamId
    attempt: AttemptRef
    error: ServiceError | None


@dataclass(slots=True)
class AckResult:
    """A result is committed, or refused with a definite error."""

    stream: StreamId
    attempt: AttemptRef
    error: ServiceError | None


@dataclass(slots=True)
class Probe:
    """Ask for a sign of life."""

    stream: StreamId
    nonce: int


@dataclass(slots=True)
class GrantLocks:
    """All claims of a request are held."""

    stream: StreamId
    lock_request_id: int
    locks: tuple[HeldLock, ...]
    #: Until when they stand if nothing more is heard of the agent.
    until: Instant


@dataclass(slots=True)
class RefuseLocks:
    """A request will not be granted."""

    stream: StreamId
    lock_request_id: int
    error: ServiceError


@dataclass(slots=True)
class RevokeLock:
    """A lock ended without being released."""

    stream: StreamId
    lock: HeldLock
    reason: str


@dataclass(slots=True)
class CloseStream:
    """End a stream with an error."""

    stream: StreamId
    error: ServiceError


# Sends, to watchers.


@dataclass(slots=True)
class Publish:
    """Something changed."""

    change: Change | Progress


# Answers.


@dataclass(slots=True)
class Accepted:
    """A submission is durable."""

    collaboration_id: CollaborationId
    generation: int
    already_accepted: bool
    warnings: tuple[str, ...]


@dataclass(slots=True)
class Answer:
    """What a requester gets: `Accepted`, the collaboration or the policies that were changed, or an error."""

    reply: ReplyId
    value: Accepted | Collaboration | PolicyCell | ServiceError


Write = SaveSpecs | SaveCollaboration | SaveTask | Forget | PutLock | DeleteLock | SaveLearned
#: What can be said to an agent.
WorkItem = (
    Welcome
    | Assign
    | CancelAttempt
    | SuspendAttempt
    | AckResult
    | AckSavepoint
    | Probe
    | GrantLocks
    | RefuseLocks
    | RevokeLock
)
Send = WorkItem | CloseStream | Publish
Effect = Write | EndLease | SearchPlan | Send | Answer | EntryDraft
