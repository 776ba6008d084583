"""What the core asks of the outside.

The driver carries effects out in three groups and in this order: *writes* and *entries* are made durable,
then *sends* go out, then *answers*. Effects that name a live `Task` or `Collaboration` mean its value at the
end of the batch; one write per subject is enough, however often it changed.
"""

from __future__ import annotations

from typing import NamedTuple

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


class SaveSpecs(NamedTuple):
    """A new collaboration's immutable half."""

    collaboration: Collaboration


class SaveCollaboration(NamedTuple):
    """A collaboration's own mutable half."""

    collaboration: Collaboration


class SaveTask(NamedTuple):
    """A task's mutable half."""

    task: Task


class Forget(NamedTuple):
    """Everything about a collaboration whose retention is over."""

    collaboration_id: CollaborationId


class PutLock(NamedTuple):
    """A granted claim; it counts when `LocksWritten` comes back."""

    lock: StoredLock


class DeleteLock(NamedTuple):
    """A claim that ended."""

    resource: ResourceName
    claim_id: str


class SaveLearned(NamedTuple):
    """One record of what was learned, as it is now; None deletes it."""

    key: LearnedKey
    value: Learned | None


class EndLease(NamedTuple):
    """An instance is gone for good: the lease of its locks may end."""

    instance: InstanceKey


# Searches.


class SearchPlan(NamedTuple):
    """Look for a better plan beside the loop; `PlanFound` under the same number comes back."""

    number: int
    problem: Problem
    #: The standing plan; None when there is none.
    places: Places | None
    budget_ms: int


# Sends, to one Work stream.


class Welcome(NamedTuple):
    """The stream is accepted."""

    stream: StreamId


class Assign(NamedTuple):
    """Hand an attempt over."""

    stream: StreamId
    #: Kept alive until the assignment is on its way.
    collaboration: Collaboration
    task: Task
    attempt: Attempt
    locks: tuple[HeldLock, ...]


class CancelAttempt(NamedTuple):
    """Ask an agent to stop an attempt that is no longer current."""

    stream: StreamId
    attempt: AttemptRef
    reason: str


class SuspendAttempt(NamedTuple):
    """Ask an agent to save and stop an attempt; its slot is the scheduler's from now on."""

    stream: StreamId
    attempt: AttemptRef
    reason: str
    grace_ms: int


class AckSavepoint(NamedTuple):
    """A savepoint is committed, or refused with a definite error."""

    stream: StreamId
    attempt: AttemptRef
    error: ServiceError | None


class AckResult(NamedTuple):
    """A result is committed, or refused with a definite error."""

    stream: StreamId
    attempt: AttemptRef
    error: ServiceError | None


class Probe(NamedTuple):
    """Ask for a sign of life."""

    stream: StreamId
    nonce: int


class GrantLocks(NamedTuple):
    """All claims of a request are held."""

    stream: StreamId
    lock_request_id: int
    locks: tuple[HeldLock, ...]
    #: Until when they stand if nothing more is heard of the agent.
    until: Instant


class RefuseLocks(NamedTuple):
    """A request will not be granted."""

    stream: StreamId
    lock_request_id: int
    error: ServiceError


class RevokeLock(NamedTuple):
    """A lock ended without being released."""

    stream: StreamId
    lock: HeldLock
    reason: str


class CloseStream(NamedTuple):
    """End a stream with an error."""

    stream: StreamId
    error: ServiceError


# Sends, to watchers.


class Publish(NamedTuple):
    """Something changed."""

    change: Change | Progress


# Answers.


class Accepted(NamedTuple):
    """A submission is durable."""

    collaboration_id: CollaborationId
    generation: int
    already_accepted: bool
    warnings: tuple[str, ...]


class Answer(NamedTuple):
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
