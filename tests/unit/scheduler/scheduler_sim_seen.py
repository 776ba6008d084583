"""What the checker of simulated planes knows of tasks, links and collaborations: facts from outside alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.core.fencing import FencingToken
from services.common.core.ids import TaskId
from services.common.core.instants import Instant
from services.scheduler.core.events import StreamId
from services.scheduler.core.model import (
    InstanceKey,
    Priority,
    Submission,
    TaskKey,
    TaskSpec,
    TaskState,
)
from services.scheduler.core.records import CollaborationRecord, TaskRecord


class BrokenPromise(Exception):
    """A guarantee that the history contradicts."""

    def __init__(self, promise: str, story: str) -> None:
        super().__init__(f"{promise}: {story}")
        self.promise = promise


@dataclass(slots=True)
class Seen:
    """One task as the outside may know it."""

    key: TaskKey
    spec: TaskSpec
    priority: Priority
    deadline: Instant | None
    requester: str
    #: As the store has it; None when it never changed.
    record: TaskRecord | None = None
    #: Since when it waits, None when it does not.
    waiting_since: Instant | None = None
    #: The same of its last wait that is over.
    waited_since: Instant | None = None
    #: The largest token that was ever committed, and how many attempts failed or timed out.
    newest: FencingToken = field(default_factory=lambda: FencingToken(0, 0))
    #: Tokens that were handed over.
    told: set[FencingToken] = field(default_factory=set)
    #: When the newest savepoint was taken of which an agent was told that it is durable.
    saved: Instant | None = None
    #: Starts that other tasks got while it waited beyond its age, by agent that could have done it; and the
    #: most requesters with aged tasks, and aged tasks of its own requester, that there were meanwhile.
    passed_over: dict[StreamId, int] = field(default_factory=dict)
    rivals: tuple[int, int] = (0, 0)

    @property
    def state(self) -> TaskState:
        return TaskState.PENDING if self.record is None else self.record.state

    @property
    def simple(self) -> bool:
        """Whether nothing but a free agent with the skills is needed to start it."""
        return not (self.spec.resources or self.spec.needs or self.spec.gang)


@dataclass(slots=True)
class Link:
    """One Work stream as the scheduler knows it from what was delivered to it."""

    instance: InstanceKey
    skills: frozenset[str]
    capacities: Mapping[str, int]
    suspendable: bool = True
    credits: int = 0
    draining: bool = False


@dataclass(slots=True)
class Case:
    """One collaboration."""

    submission: Submission
    tasks: dict[TaskId, Seen]
    record: CollaborationRecord | None = None
    #: The newest generation that watchers saw under the present leader.
    published: int | None = None
    answered: bool = False
    cancelled: bool = False
    #: Whether the newest order to pause it, or to let it go on, that the present leader got was to go on.
    goes_on: bool | None = None
    gangs: dict[TaskId, list[Seen]] = field(default_factory=dict)
