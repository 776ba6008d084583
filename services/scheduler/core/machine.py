"""The life cycles of a collaboration, a task and an attempt, as data.

What is absent from a table cannot happen: `Table.next` raises `InvalidTransitionError`. The rows for the
collaboration state CONFLICTED come with the features that enter it.
"""

from __future__ import annotations

from enum import IntEnum, auto

from services.common.core.machine import Table
from services.scheduler.core.model import AttemptState, CollaborationState, TaskState


class CollaborationInput(IntEnum):
    """What can happen to a collaboration."""

    #: Its first attempt was assigned.
    BEGIN = auto()
    #: Its last task succeeded.
    COMPLETE = auto()
    #: Its last task ended, and at least one failed.
    FAIL = auto()
    #: Somebody who may cancelled it.
    CANCEL = auto()
    #: Somebody who may paused it.
    PAUSE = auto()
    #: Somebody who may let it go on: after, or before, its first attempt.
    RESUME = auto()
    RESUME_UNBEGUN = auto()


class TaskInput(IntEnum):
    """What can happen to a task."""

    #: Every dependency succeeded.
    DEPENDENCIES_MET = auto()
    #: An attempt was placed.
    ASSIGN = auto()
    #: The agent reported that the attempt runs.
    START = auto()
    #: The one result was accepted.
    SUCCEED = auto()
    #: The attempt ended without a result and the policy allows another.
    RETURN = auto()
    #: No further attempt is allowed, or its deadline passed.
    FAIL = auto()
    #: The collaboration was cancelled, or a dependency can no longer succeed.
    CANCEL = auto()
    #: Its attempt made room for more urgent work.
    SUSPEND = auto()


class AttemptInput(IntEnum):
    """What can happen to an attempt."""

    START = auto()
    SUCCEED = auto()
    FAIL = auto()
    #: Its agent is gone, or came back without it.
    LOSE = auto()
    CANCEL = auto()
    #: It ran longer than the task's attempt_timeout.
    TIME_OUT = auto()
    #: More urgent work needs its slot: its agent is asked to save and stop.
    ASK_SUSPEND = auto()
    #: Its agent stopped it as asked, or its grace is over.
    SUSPEND = auto()


_C, _T, _A = CollaborationState, TaskState, AttemptState

COLLABORATION: Table[CollaborationState, CollaborationInput] = Table(
    "collaboration",
    _C.INITIALIZING,
    {
        # State: initializing - durable, nothing assigned yet
        (_C.INITIALIZING, CollaborationInput.BEGIN): _C.ACTIVE,
        # A task's deadline can pass, and a collaboration be cancelled, before anything ran.
        (_C.INITIALIZING, CollaborationInput.FAIL): _C.FAILED,
        (_C.INITIALIZING, CollaborationInput.CANCEL): _C.CANCELLED,
        (_C.INITIALIZING, CollaborationInput.PAUSE): _C.SUSPENDED,
        # State: active - at least one attempt was made
        (_C.ACTIVE, CollaborationInput.COMPLETE): _C.COMPLETED,
        (_C.ACTIVE, CollaborationInput.FAIL): _C.FAILED,
        (_C.ACTIVE, CollaborationInput.CANCEL): _C.CANCELLED,
        (_C.ACTIVE, CollaborationInput.PAUSE): _C.SUSPENDED,
        # State: suspended - paused; what runs goes on and may be the last of it
        (_C.SUSPENDED, CollaborationInput.RESUME): _C.ACTIVE,
        (_C.SUSPENDED, CollaborationInput.RESUME_UNBEGUN): _C.INITIALIZING,
        (_C.SUSPENDED, CollaborationInput.COMPLETE): _C.COMPLETED,
        (_C.SUSPENDED, CollaborationInput.FAIL): _C.FAILED,
        (_C.SUSPENDED, CollaborationInput.CANCEL): _C.CANCELLED,
    },
)

TASK: Table[TaskState, TaskInput] = Table(
    "task",
    _T.PENDING,
    {
        # State: pending - waits for other tasks
        (_T.PENDING, TaskInput.DEPENDENCIES_MET): _T.READY,
        (_T.PENDING, TaskInput.FAIL): _T.FAILED,
        (_T.PENDING, TaskInput.CANCEL): _T.CANCELLED,
        # State: ready - waits for an agent, a lock or its retry delay
        (_T.READY, TaskInput.ASSIGN): _T.ASSIGNED,
        (_T.READY, TaskInput.FAIL): _T.FAILED,
        (_T.READY, TaskInput.CANCEL): _T.CANCELLED,
        # State: assigned - one attempt is on its way to, or at, an agent
        (_T.ASSIGNED, TaskInput.START): _T.RUNNING,
        # A handler may end before its start was reported: both travel in frames of their own.
        (_T.ASSIGNED, TaskInput.SUCCEED): _T.SUCCEEDED,
        (_T.ASSIGNED, TaskInput.RETURN): _T.READY,
        (_T.ASSIGNED, TaskInput.FAIL): _T.FAILED,
        (_T.ASSIGNED, TaskInput.CANCEL): _T.CANCELLED,
        (_T.ASSIGNED, TaskInput.SUSPEND): _T.SUSPENDED,
        # State: running - the agent said so
        (_T.RUNNING, TaskInput.SUCCEED): _T.SUCCEEDED,
        (_T.RUNNING, TaskInput.RETURN): _T.READY,
        (_T.RUNNING, TaskInput.FAIL): _T.FAILED,
        (_T.RUNNING, TaskInput.CANCEL): _T.CANCELLED,
        (_T.RUNNING, TaskInput.SUSPEND): _T.SUSPENDED,
        # State: suspended - waits for an agent, to go on from its savepoint
        (_T.SUSPENDED, TaskInput.ASSIGN): _T.ASSIGNED,
        (_T.SUSPENDED, TaskInput.FAIL): _T.FAILED,
        (_T.SUSPENDED, TaskInput.CANCEL): _T.CANCELLED,
    },
)

ATTEMPT: Table[AttemptState, AttemptInput] = Table(
    "attempt",
    _A.ASSIGNED,
    {
        # State: assigned - durable; may or may not have reached its agent
        (_A.ASSIGNED, AttemptInput.START): _A.RUNNING,
        (_A.ASSIGNED, AttemptInput.SUCCEED): _A.SUCCEEDED,
        (_A.ASSIGNED, AttemptInput.FAIL): _A.FAILED,
        (_A.ASSIGNED, AttemptInput.LOSE): _A.LOST,
        (_A.ASSIGNED, AttemptInput.CANCEL): _A.CANCELLED,
        (_A.ASSIGNED, AttemptInput.TIME_OUT): _A.TIMED_OUT,
        (_A.ASSIGNED, AttemptInput.ASK_SUSPEND): _A.SUSPENDING,
        # State: running - the agent said so
        (_A.RUNNING, AttemptInput.SUCCEED): _A.SUCCEEDED,
        (_A.RUNNING, AttemptInput.FAIL): _A.FAILED,
        (_A.RUNNING, AttemptInput.LOSE): _A.LOST,
        (_A.RUNNING, AttemptInput.CANCEL): _A.CANCELLED,
        (_A.RUNNING, AttemptInput.TIME_OUT): _A.TIMED_OUT,
        (_A.RUNNING, AttemptInput.ASK_SUSPEND): _A.SUSPENDING,
        # State: suspending - asked to save and stop; what it reports meanwhile counts as before
        (_A.SUSPENDING, AttemptInput.SUCCEED): _A.SUCCEEDED,
        (_A.SUSPENDING, AttemptInput.FAIL): _A.FAILED,
        (_A.SUSPENDING, AttemptInput.LOSE): _A.LOST,
        (_A.SUSPENDING, AttemptInput.CANCEL): _A.CANCELLED,
        (_A.SUSPENDING, AttemptInput.SUSPEND): _A.SUSPENDED,
    },
)
