"""What can happen to the scheduler.

Every event carries a `cause_id`: the request's id, or `<what>-<number>`; effects, audit entries and logs
repeat it. Randomness arrives as `jitter`, a number in [0, 1) that the driver draws.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, NewType

from services.common.core.errors import ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, CollaborationId, InstanceId, ResourceName, Skill, TaskId
from services.scheduler.core.model import (
    AttemptRef,
    Failure,
    InstanceKey,
    Payload,
    ResourceClaim,
    Submission,
)
from services.scheduler.core.planning.rolling import Places
from services.scheduler.core.prediction.cells import Learned, LearnedKey
from services.scheduler.core.records import StoredCollaboration, StoredLock

#: Names one Work stream; made by the driver, never used again.
StreamId = NewType("StreamId", int)
#: Names who waits for an answer; opaque to the core.
ReplyId = NewType("ReplyId", int)


# From requesters.


class Submitted(NamedTuple):
    """A requester wants a DAG done."""

    cause_id: str
    submission: Submission
    collaboration_id: CollaborationId
    reply: ReplyId


class CancelRequested(NamedTuple):
    """Somebody who may (the edge has checked) wants a collaboration stopped."""

    cause_id: str
    collaboration_id: CollaborationId
    actor: str
    reason: str
    reply: ReplyId


class PauseRequested(NamedTuple):
    """Somebody who may (the edge has checked) wants nothing new of a collaboration to begin."""

    cause_id: str
    collaboration_id: CollaborationId
    actor: str
    reason: str
    #: What runs is asked to save and stop, too.
    suspend_running: bool
    reply: ReplyId


class ResumeRequested(NamedTuple):
    """Somebody who may (the edge has checked) wants a paused collaboration to go on."""

    cause_id: str
    collaboration_id: CollaborationId
    actor: str
    reason: str
    reply: ReplyId


class PolicyAction(IntEnum):
    """What an operator may do to the choice of policies; the numbers are the proto's."""

    FREEZE = 1
    UNFREEZE = 2
    RESET = 3


class PolicyOrdered(NamedTuple):
    """An operator changes how policies are chosen."""

    cause_id: str
    action: PolicyAction
    actor: str
    reason: str
    reply: ReplyId


class AssessRequested(NamedTuple):
    """Somebody who may (the edge has checked) says how good a result is."""

    cause_id: str
    collaboration_id: CollaborationId
    task_id: TaskId
    #: 0 to 1.
    score: float
    comment: str
    actor: str
    reply: ReplyId


class Refused(NamedTuple):
    """The edge refused something that never became an event of its own: it is recorded like any refusal."""

    cause_id: str
    operation: str
    subject: str
    actor: str
    error: ServiceError
    #: None when the error is told in another way.
    reply: ReplyId | None = None


# From agents.


class HeldLock(NamedTuple):
    """One lock grant as its holder names it."""

    resource: ResourceName
    token: FencingToken


class WorkOpened(NamedTuple):
    """An agent opened its Work stream."""

    cause_id: str
    stream: StreamId
    instance: InstanceKey
    incarnation: int
    held: tuple[AttemptRef, ...] = ()
    held_locks: tuple[HeldLock, ...] = ()
    #: It heeds the request to suspend an attempt.
    suspendable: bool = False


class ProgressReport(NamedTuple):
    """How far an attempt is: 0 to 1, and what it is doing."""

    attempt: AttemptRef
    progress: float
    stage: str


class Cancelled(NamedTuple):
    """The agent stopped an attempt because it was asked to."""


class Suspended(NamedTuple):
    """The agent stopped an attempt to make room for more urgent work."""

    #: From where to go on; None for the newest savepoint that it saved before.
    savepoint: Payload | None


class ResultReport(NamedTuple):
    """How an attempt ended."""

    attempt: AttemptRef
    outcome: Payload | Failure | Cancelled | Suspended


class SavepointReport(NamedTuple):
    """From where another attempt could go on."""

    attempt: AttemptRef
    savepoint: Payload


class LockRequested(NamedTuple):
    """An agent's code wants locks: all of them or none."""

    #: Unique per stream.
    lock_request_id: int
    claims: tuple[ResourceClaim, ...]
    #: None waits without limit; 0 tries once.
    wait_ms_max: int | None = None
    #: The attempt on whose behalf; its end ends the locks.
    attempt: AttemptRef | None = None


class LockReleased(NamedTuple):
    """An agent gives locks back, or withdraws a request that waits."""

    lock_request_id: int
    locks: tuple[HeldLock, ...] = ()


class WorkFrame(NamedTuple):
    """One frame from an agent, everything in it."""

    cause_id: str
    stream: StreamId
    jitter: float
    credits: int = 0
    started: tuple[AttemptRef, ...] = ()
    progress: tuple[ProgressReport, ...] = ()
    results: tuple[ResultReport, ...] = ()
    probe_nonce: int = 0
    lock_requests: tuple[LockRequested, ...] = ()
    lock_releases: tuple[LockReleased, ...] = ()
    drain: bool = False
    savepoints: tuple[SavepointReport, ...] = ()


class WorkClosed(NamedTuple):
    """A Work stream ended, whoever ended it."""

    cause_id: str
    stream: StreamId


# From the registry.


class InstanceView(NamedTuple):
    """One running copy of an agent as the registry sees it."""

    instance_id: InstanceId
    incarnation: int
    #: Its lease ended, or it said farewell.
    gone: bool
    #: Skill to declared level, 0 < level <= 1.
    skills: tuple[tuple[Skill, float], ...]
    #: Capacity to amount, as declared.
    capacities: tuple[tuple[str, int], ...] = ()
    #: What a slot costs for an hour.
    cost: float = 0.0


class AgentView(NamedTuple):
    """One identity as the registry sees it."""

    agent_id: AgentId
    #: Of all its instances, or the last known ones.
    skills: frozenset[Skill]
    instances: tuple[InstanceView, ...]


class AgentsChanged(NamedTuple):
    """The registry told of agents; with `snapshot` these are all there are."""

    cause_id: str
    jitter: float
    agents: tuple[AgentView, ...]
    snapshot: bool = False


# From the store.


class ForeignLock(NamedTuple):
    """A key under a resource that another program holds, for example `etcdctl lock`."""

    resource: ResourceName
    #: The key without the resource's prefix.
    claim_id: str
    create_revision: int


class LockKeysChanged(NamedTuple):
    """Keys under the locks' prefix that others wrote, and keys that are gone."""

    cause_id: str
    jitter: float
    foreign: tuple[ForeignLock, ...] = ()
    #: (resource, claim_id), foreign or our own.
    deleted: tuple[tuple[ResourceName, str], ...] = ()


class LockWritten(NamedTuple):
    """All keys of one lock request are durable."""

    claim_id: str
    #: The keys' create revision: the token's number.
    revision: int
    #: Keys of other programs that came before: then the lock is theirs.
    beaten_by: tuple[ForeignLock, ...] = ()


class LocksWritten(NamedTuple):
    """A commit with lock keys succeeded."""

    cause_id: str
    locks: tuple[LockWritten, ...]


# From the store, once, when a leadership begins.


class Recovered(NamedTuple):
    """Everything that the store holds, at the start of a leadership."""

    cause_id: str
    collaborations: tuple[StoredCollaboration, ...]
    locks: tuple[StoredLock, ...]
    foreign: tuple[ForeignLock, ...]
    learned: tuple[tuple[LearnedKey, Learned], ...] = ()


# From the driver.


class Ticked(NamedTuple):
    """Time passed: what is due is done."""

    cause_id: str
    jitter: float


class PlanFound(NamedTuple):
    """A search that the core asked for has ended."""

    cause_id: str
    number: int
    #: The plan that it began with and the best one found; None when it failed.
    before: Places | None
    after: Places | None


class PlacementDue(NamedTuple):
    """The batch has been stepped: place what can be placed."""

    cause_id: str


Event = (
    Submitted
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | AssessRequested
    | PolicyOrdered
    | Refused
    | WorkOpened
    | WorkFrame
    | WorkClosed
    | AgentsChanged
    | LockKeysChanged
    | LocksWritten
    | Recovered
    | Ticked
    | PlanFound
    | PlacementDue
)
