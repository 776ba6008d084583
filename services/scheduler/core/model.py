"""The nouns of the scheduler.

What a requester wrote is frozen (`TaskSpec`, `CollaborationSpec`); what happens to it is mutable and owned
by `core.state.SchedulerState` alone (`core.course`). Times are instants and durations in milliseconds.
Enum values are those of `muster.scheduler.v1`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from services.common.core.fencing import FencingToken
from services.common.core.ids import (
    AgentId,
    CollaborationId,
    InstanceId,
    RequestId,
    ResourceName,
    Skill,
    TaskId,
)
from services.common.core.instants import Instant


class Priority(IntEnum):
    """Priority class; the smaller, the more urgent."""

    EMERGENCY = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4


class LockMode(IntEnum):
    """Who may hold a resource together."""

    EXCLUSIVE = 1
    SHARED = 2


class UnknownSkillPolicy(IntEnum):
    """What happens to a task whose skill no known agent has."""

    WAIT = 1
    FAIL = 2


class Speculation(IntEnum):
    """Whether two attempts of one task may run at once."""

    ALLOWED = 1
    NEVER = 2


class SchedulingPolicy(IntEnum):
    """Which of the free agents that can do a task gets it; `core.policies` has one file for each."""

    PRIORITY = 1
    ROUND_ROBIN = 2
    LEAST_LOADED = 3
    BEST_MATCH = 4
    MULTI_OBJECTIVE = 5
    PREDICTIVE = 6


class PolicyWeights(NamedTuple):
    """What MULTI_OBJECTIVE weighs, each at least 0; only the ratios matter, and all 0 means all alike."""

    finish_time: float = 0.0
    quality: float = 0.0
    cost: float = 0.0
    fairness: float = 0.0


ALIKE = PolicyWeights()


class PolicyArm(NamedTuple):
    """A policy that may be chosen for a collaboration that names none."""

    policy: SchedulingPolicy
    #: None for those that the requester gives.
    weights: PolicyWeights | None = None

    @property
    def name(self) -> str:
        """The policy's name, with the weights that are not 0."""
        given = {} if self.weights is None else self.weights._asdict()
        return self.policy.name + "".join(f":{name}={value:g}" for name, value in given.items() if value)


class CollaborationState(IntEnum):
    """Life cycle of a collaboration."""

    INITIALIZING = 1
    ACTIVE = 2
    SUSPENDED = 3
    CONFLICTED = 4
    COMPLETED = 5
    FAILED = 6
    CANCELLED = 7


class TaskState(IntEnum):
    """Life cycle of a task."""

    PENDING = 1
    READY = 2
    ASSIGNED = 3
    RUNNING = 4
    SUCCEEDED = 5
    FAILED = 6
    CANCELLED = 7
    SUSPENDED = 8


class AttemptState(IntEnum):
    """Life cycle of one try."""

    ASSIGNED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    LOST = 5
    CANCELLED = 6
    TIMED_OUT = 7
    SUSPENDING = 8
    SUSPENDED = 9


class FailureKind(IntEnum):
    """Whether a failure may pass."""

    TRANSIENT = 1
    PERMANENT = 2


COLLABORATION_ENDED = frozenset(
    {CollaborationState.COMPLETED, CollaborationState.FAILED, CollaborationState.CANCELLED}
)
TASK_ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})
TASK_HELD = frozenset({TaskState.ASSIGNED, TaskState.RUNNING})
#: Waits for an agent, a lock or its retry delay.
TASK_WAITING = frozenset({TaskState.READY, TaskState.SUSPENDED})
ATTEMPT_OPEN = frozenset({AttemptState.ASSIGNED, AttemptState.RUNNING, AttemptState.SUSPENDING})


class InstanceKey(NamedTuple):
    """One running copy of an agent; its incarnation is kept beside it."""

    agent_id: AgentId
    instance_id: InstanceId

    def __str__(self) -> str:
        return f"{self.agent_id}/{self.instance_id}"


class TaskKey(NamedTuple):
    """Names a task in the whole plane."""

    collaboration_id: CollaborationId
    task_id: TaskId

    def __str__(self) -> str:
        return f"{self.collaboration_id}/{self.task_id}"


class AttemptRef(NamedTuple):
    """Names one attempt by the fencing token under which it runs."""

    collaboration_id: CollaborationId
    task_id: TaskId
    token: FencingToken

    @property
    def task_key(self) -> TaskKey:
        """The task that it tries."""
        return TaskKey(self.collaboration_id, self.task_id)

    def __str__(self) -> str:
        return f"{self.collaboration_id}/{self.task_id}#{self.token!s}"


@dataclass(frozen=True, slots=True)
class Payload:
    """An opaque value; the plane never interprets it."""

    content_type: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class ResourceClaim:
    """A resource and how it is needed."""

    resource: ResourceName
    mode: LockMode = LockMode.EXCLUSIVE


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a transient failure is tried again."""

    #: Attempts that may fail in all.
    attempt_max: int = 3
    #: Delay before the second attempt; doubles with each failure.
    backoff_ms: int = 200
    #: The delay never exceeds this.
    backoff_max_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong."""

    kind: FailureKind
    #: Short UPPER_SNAKE reason.
    reason: str
    #: For people.
    message: str = ""


class GangPlace(NamedTuple):
    """One member's place in a gang: tasks that start together, on different agents, or not at all."""

    #: The task_id of rank 0.
    gang_id: TaskId
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a requester wants done: one node of the DAG, as it was written (nothing inherited yet)."""

    task_id: TaskId
    required_skills: tuple[Skill, ...]
    task_name: str = ""
    description: str = ""
    #: None means the collaboration's.
    priority: Priority | None = None
    #: Empty means the first required skill.
    task_type: str = ""
    #: If not empty, only these may run it.
    required_agents: tuple[AgentId, ...] = ()
    estimated_duration_ms: int = 1_000
    dependencies: tuple[TaskId, ...] = ()
    #: None means the collaboration's; the earlier one of the two counts.
    deadline: Instant | None = None
    resources: tuple[ResourceClaim, ...] = ()
    retry: RetryPolicy = RetryPolicy()
    payload: Payload = Payload()
    attempt_timeout_ms: int = 600_000
    speculation: Speculation = Speculation.ALLOWED
    #: What an attempt takes of its agent's capacities, by name in order of name.
    needs: tuple[tuple[str, int], ...] = ()
    #: None for a task that is done by one agent alone.
    gang: GangPlace | None = None
    #: The wire form, made once and never read by the core.
    encoded: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CollaborationSpec:
    """What a requester submits: a DAG of tasks."""

    tasks: tuple[TaskSpec, ...]
    name: str = ""
    collaboration_type: str = ""
    priority: Priority = Priority.NORMAL
    deadline: Instant | None = None
    unknown_skill_policy: UnknownSkillPolicy = UnknownSkillPolicy.WAIT
    #: Preferred local coordinator; empty lets the scheduler choose.
    coordinator_agent: str = ""
    shared_context: Payload = Payload()
    #: None means what the scheduler's settings say.
    policy: SchedulingPolicy | None = None
    weights: PolicyWeights = ALIKE

    def priority_of(self, task: TaskSpec) -> Priority:
        """Return the class in which `task` competes."""
        return self.priority if task.priority is None else task.priority

    def deadline_of(self, task: TaskSpec) -> Instant | None:
        """Return the earlier one of the task's and the collaboration's deadline."""
        if task.deadline is None or self.deadline is None:
            return self.deadline if task.deadline is None else task.deadline
        return min(task.deadline, self.deadline)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one submission; `muster.scheduler.v1` states them field by field."""

    task_max: int = 10_000
    dependency_max: int = 256
    skill_max: int = 16
    required_agent_max: int = 64
    resource_max: int = 16
    need_max: int = 8
    need_amount_max: int = 2**53
    gang_size_max: int = 64
    weight_max: float = 1_000.0
    payload_bytes_max: int = 65_536
    content_type_bytes_max: int = 127
    name_bytes_max: int = 256
    description_bytes_max: int = 4_096
    collaboration_type_bytes_max: int = 64
    duration_ms_max: int = 30 * 24 * 3_600_000
    attempt_max: int = 100
    backoff_ms_max: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Submission:
    """One request to accept a DAG, with who asks."""

    requester: str
    request_id: RequestId
    spec: CollaborationSpec
    #: SHA-256 of the deterministic wire form of the spec: tells a repeated request from a reused id.
    content_hash: bytes = b""
    #: All but the tasks as the store keeps it, made once and never read by the core; empty when not made.
    encoded: bytes = field(default=b"", compare=False, repr=False)
