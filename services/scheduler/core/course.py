"""What happens to a task, an attempt and a collaboration: the mutable half of the model.

Owned by `core.state.SchedulerState`. `Attempt` and the views are immutable: watchers, the history and the
wire may keep them while the state moves on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import TYPE_CHECKING, NamedTuple

from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, CollaborationId, TaskId
from services.common.core.instants import NEVER, Instant
from services.scheduler.core.changes import CollaborationView, SavepointNote, TaskView
from services.scheduler.core.history import History
from services.scheduler.core.locking.queue import LockId
from services.scheduler.core.model import (
    ATTEMPT_OPEN,
    COLLABORATION_ENDED,
    TASK_ENDED,
    AttemptRef,
    AttemptState,
    CollaborationState,
    Failure,
    InstanceKey,
    Payload,
    Priority,
    Submission,
    TaskKey,
    TaskSpec,
    TaskState,
)
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.running.deadlines import WHOLE, DeadlineWarning, Lateness
from services.scheduler.core.timers import Timer

if TYPE_CHECKING:
    from services.scheduler.core.placing.lanes import Lane

#: Attempts of one task that are kept; older ones are in the audit log.
ATTEMPTS_KEPT_MAX = 32


class Trial(NamedTuple):
    """The policy that was chosen for a collaboration that names none."""

    #: Name of the arm.
    arm: str
    #: Under which load its outcome counts; empty when it does not.
    load: str


class Predicted(NamedTuple):
    """How long an attempt was expected to take when it was assigned, in milliseconds."""

    #: As many such runs are shorter as are longer; 80 % lie between the other two.
    mean_ms: int
    low_ms: int
    high_ms: int
    #: Earlier runs of this type by this agent that count.
    observations: float = 0.0


class Attempt(NamedTuple):
    """One try of a task by one agent under one fencing token."""

    token: FencingToken
    instance: InstanceKey
    incarnation: int
    state: AttemptState
    assign_time: Instant
    #: Why this agent, for people.
    explanation: str = ""
    start_time: Instant | None = None
    end_time: Instant | None = None
    failure: Failure | None = None
    #: None when it was assigned before there were predictions.
    predicted: Predicted | None = None
    #: It began beside a slow one that was still running.
    speculative: bool = False
    #: When its grace ends; set when it was asked to suspend.
    suspend_time: Instant | None = None

    @property
    def open(self) -> bool:
        """Whether its agent may still act under its token."""
        return self.state in ATTEMPT_OPEN

    def moved_on(
        self,
        state: AttemptState,
        start_time: Instant | None,
        end_time: Instant | None = None,
        failure: Failure | None = None,
    ) -> Attempt:
        """Return it as it is in its next state."""
        # One by one: `_replace` costs several times as much, and each attempt moves on twice.
        token, instance, incarnation, _, assigned, why, _, _, _, predicted, speculative, until = self
        return Attempt(
            token,
            instance,
            incarnation,
            state,
            assigned,
            why,
            start_time,
            end_time,
            failure,
            predicted,
            speculative,
            until,
        )


class Savepoint(NamedTuple):
    """From where the next attempt of a task goes on."""

    #: The attempt that saved it.
    attempt_number: int
    save_time: Instant
    payload: Payload


class Place(IntEnum):
    """Where a READY or SUSPENDED task waits."""

    #: Nowhere: it does not wait.
    NOWHERE = auto()
    #: In the placement index, for an agent.
    QUEUE = auto()
    #: In the lock table, for its claims.
    LOCKS = auto()
    #: For its retry delay.
    DELAY = auto()
    #: For its collaboration to be resumed.
    PAUSE = auto()


@dataclass(slots=True, eq=False)
class Task:
    """A task with its course. Times in milliseconds; `None` means not yet."""

    #: Weak, so that a forgotten collaboration is freed at once: cycles would wait for the garbage collector,
    #: whose pauses grow with everything that is alive.
    home: weakref.ref[Collaboration] = field(repr=False)
    key: TaskKey
    spec: TaskSpec
    #: The class and the deadline that count, after inheritance.
    priority: Priority
    deadline: Instant | None
    #: Longest chain of estimated durations from its start to the end of its collaboration.
    rank_ms: int
    #: What it needs of an agent, and how one is chosen.
    demand: Demand
    #: Whose share of the fleet it takes.
    account: Account = field(repr=False)
    #: Place in the order of submission over all tasks.
    arrival: int
    #: Tasks that depend on it.
    dependents: tuple[TaskId, ...] = ()
    #: Dependencies that have not succeeded yet; 0 in every state but PENDING, CANCELLED and FAILED.
    unmet: int = 0
    #: Under which its course is learned; empty until it is first asked for.
    task_type: str = ""
    state: TaskState = TaskState.PENDING
    #: Grows by one with every durable change of this task.
    generation: int = 0
    #: The collaboration's generation at its last change.
    collaboration_generation: int = 0
    #: The newest ATTEMPTS_KEPT_MAX, oldest first.
    attempts: tuple[Attempt, ...] = ()
    #: Those that are open, oldest first. At most two, at different instances: one, and a speculative one that
    #: began after it.
    open_attempts: tuple[Attempt, ...] = ()
    #: Attempts made in all: the number of the newest token.
    attempt_count: int = 0
    #: Attempts that failed or timed out; a lost agent does not count.
    failure_count: int = 0
    #: Attempts that ended by the scheduler's own decision: suspended, moved, or second to finish.
    excused_count: int = 0
    savepoint: Savepoint | None = None
    result: Payload | None = None
    failure: Failure | None = None
    ready_time: Instant | None = None
    end_time: Instant | None = None
    #: End of the retry delay, while `place` is DELAY.
    retry_time: Instant | None = None
    #: Of its open attempts, the newest report; not durable.
    progress: float = 0.0
    stage: str = ""
    #: What made it ready: the request, or the attempt before.
    cause_id: str = ""
    place: Place = Place.NOWHERE
    #: The request for its declared claims: waiting, granted or held.
    lock_id: LockId | None = None
    #: When all that hangs on it can still be in time if it has ended by then; NEVER without any deadline.
    due: Instant = NEVER
    #: The task whose deadline says when it is due; WHOLE for its collaboration's own.
    deadline_of: TaskId = WHOLE
    #: Grows when it enters the placement index; an index entry with another number is stale.
    queue_number: int = 0
    #: While it waits there: its place in `placing.roster`.
    seat: int = -1
    #: The fleet's row that the forecast of PREDICTIVE chose for it in this placement; -1 for none.
    wish: int = -1
    #: While `place` is QUEUE: where in the index.
    lane: Lane | None = field(default=None, repr=False)
    #: Its retry delay, while `place` is DELAY.
    timer: Timer | None = None
    #: What ends each open attempt if nothing else does, by its number: its time-out, or the end of its grace.
    watches: dict[int, Timer] = field(default_factory=dict)
    #: When its first attempt will have taken longer than predicted.
    straggle_timer: Timer | None = None
    #: When the newest savepoint will be made durable; None when it is.
    savepoint_timer: Timer | None = None
    #: Numbers of the attempts whose savepoint is taken in and not acked yet.
    savepoint_unacked: tuple[int, ...] = ()
    deadline_timer: Timer | None = None
    #: When it will be late if nothing happens before; None without a deadline, and when it is late.
    late_timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<Task {self.key} {self.state.name} attempt {self.attempt_count}>"

    @property
    def collaboration(self) -> Collaboration:
        """What it is a part of; keep that alive for as long as you use its tasks."""
        collaboration = self.home()
        if collaboration is None:
            raise ReferenceError(f"{self!r} outlived its collaboration")
        return collaboration

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in TASK_ENDED

    @property
    def newest(self) -> Attempt | None:
        """The newest attempt, open or not."""
        return self.attempts[-1] if self.attempts else None

    @property
    def current(self) -> Attempt | None:
        """The oldest open attempt; None when there is none."""
        return self.open_attempts[0] if self.open_attempts else None

    def at(self, instance: InstanceKey) -> Attempt | None:
        """Return the open attempt that an instance holds, None when it holds none."""
        for each in self.open_attempts:
            if each.instance == instance:
                return each
        return None

    def find(self, token: FencingToken) -> Attempt | None:
        """Return the attempt under `token`, None when it is not kept."""
        for each in reversed(self.attempts):
            if each.token == token:
                return each
        return None

    def ref(self, attempt: Attempt) -> AttemptRef:
        """Return the name of one of its attempts."""
        return AttemptRef(self.key.collaboration_id, self.key.task_id, attempt.token)

    def add_attempt(self, attempt: Attempt) -> None:
        """Append the next attempt; the oldest one beyond the bound goes."""
        self.attempts = (*self.attempts[-(ATTEMPTS_KEPT_MAX - 1) :], attempt)
        self.open_attempts = (*self.open_attempts, attempt)
        self.attempt_count = attempt.token.number

    def replace(self, attempt: Attempt) -> None:
        """Put an attempt's next value in its place."""
        token = attempt.token
        self.keep_attempts(tuple([attempt if each.token == token else each for each in self.attempts]))

    def keep_attempts(self, attempts: tuple[Attempt, ...]) -> None:
        """Let these be its attempts, oldest first."""
        self.attempts = attempts
        self.open_attempts = tuple([each for each in attempts if each.state in ATTEMPT_OPEN])

    def view(self) -> TaskView:
        """Return what it is now, immutable."""
        return TaskView(
            self,
            self.state,
            self.attempts,
            self.result,
            self.failure,
            self.generation,
            self.ready_time,
            self.end_time,
            None if (saved := self.savepoint) is None else _note(saved),
        )


def _note(saved: Savepoint) -> SavepointNote:
    return SavepointNote(saved.attempt_number, saved.save_time, len(saved.payload.data))


@dataclass(slots=True, eq=False, weakref_slot=True)
class Collaboration:
    """One submitted DAG with its course."""

    collaboration_id: CollaborationId
    submission: Submission
    submit_time: Instant
    #: In the order in which they were submitted.
    tasks: dict[TaskId, Task]
    history: History
    #: Place in the order of submission.
    arrival: int
    #: Its requester's.
    account: Account
    state: CollaborationState = CollaborationState.INITIALIZING
    #: Grows by one with every durable change of it or of one of its tasks.
    generation: int = 0
    end_time: Instant | None = None
    #: The agent that coordinates locally; empty until one is chosen.
    coordinator_agent: str = ""
    #: Agents that hold or held an attempt, in order of their first one.
    members: dict[AgentId, None] = field(default_factory=dict)
    #: Tasks that have not ended.
    open_count: int = 0
    #: Set when FAILED or CANCELLED.
    failure: Failure | None = None
    #: Tasks in the order of their success, and of their failure.
    succeeded: list[TaskId] = field(default_factory=list)
    failed: list[TaskId] = field(default_factory=list)
    #: Bytes of the tasks' wire forms, as counted against the plane's bound.
    size_bytes: int = 0
    #: None as long as no deadline was predicted to be missed.
    lateness: Lateness | None = None
    #: None when its policy is given.
    trial: Trial | None = None

    def __repr__(self) -> str:
        return f"<Collaboration {self.collaboration_id} {self.state.name} generation {self.generation}>"

    @property
    def requester(self) -> str:
        """The identity that submitted it."""
        return self.submission.requester

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state in COLLABORATION_ENDED

    @property
    def warnings(self) -> tuple[DeadlineWarning, ...]:
        """The deadlines that are predicted to be missed."""
        return () if self.lateness is None else tuple(self.lateness.standing.values())

    def deadline_at(self, whose: TaskId) -> Instant:
        """Return the deadline of a task, or its own (WHOLE); NEVER without one."""
        found = self.submission.spec.deadline if whose == WHOLE else self.tasks[whose].deadline
        return NEVER if found is None else found

    def open_tasks(self) -> Iterator[Task]:
        """Yield the tasks that have not ended."""
        return (task for task in self.tasks.values() if not task.ended)

    def view(self) -> CollaborationView:
        """Return what it is now, immutable, without its tasks."""
        return CollaborationView(
            self,
            self.state,
            self.generation,
            self.end_time,
            self.coordinator_agent,
            tuple(self.members),
            len(self.succeeded),
            self.failure,
            self.warnings,
        )
