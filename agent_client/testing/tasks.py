"""The collaborations of the in-memory plane: which task is ready, which is done, what comes of it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from muster.scheduler.v1 import collaboration_pb2, task_pb2

from agent_client.core.records import AttemptRef, Claim, FencingToken, HeldLock, Payload
from agent_client.errors import InvalidRequestError, Violation
from agent_client.link import Assignment
from agent_client.testing.locks import EPOCH
from agent_client.views import CollaborationInfo
from agent_client.wire import moment, payload_from_proto, payload_to_proto, priority_from_proto

ATTEMPT_MAX_DEFAULT = 3
ATTEMPT_TIMEOUT_DEFAULT_S = 600.0


@dataclass(eq=False, slots=True)
class TaskRow:
    """A task with its course."""

    message: task_pb2.Task
    failure_count: int = 0
    attempt: AttemptRef | None = None
    agent: str = ""
    savepoint: Payload | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return self.message.spec.task_id

    @property
    def done(self) -> bool:
        """Whether it succeeded."""
        return self.message.state == task_pb2.TASK_STATE_SUCCEEDED

    @property
    def waiting(self) -> bool:
        """Whether it could be assigned, as far as it itself is concerned."""
        return self.message.state in (
            task_pb2.TASK_STATE_PENDING,
            task_pb2.TASK_STATE_READY,
            task_pb2.TASK_STATE_SUSPENDED,
        )

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The locks that an attempt needs."""
        return tuple(
            Claim(claim.resource, claim.mode == task_pb2.LOCK_MODE_SHARED)
            for claim in self.message.spec.resources
        )

    @property
    def attempt_max(self) -> int:
        """How many attempts may fail."""
        return self.message.spec.retry_policy.attempt_max or ATTEMPT_MAX_DEFAULT

    @property
    def attempt_timeout_s(self) -> float:
        """How long an attempt may run, in seconds."""
        spec = self.message.spec
        if not spec.HasField("attempt_timeout"):
            return ATTEMPT_TIMEOUT_DEFAULT_S
        return spec.attempt_timeout.ToMilliseconds() / 1000


@dataclass(eq=False, slots=True)
class Board:
    """One collaboration."""

    id: str
    spec: collaboration_pb2.CollaborationSpec
    coordinator: str
    rows: dict[str, TaskRow] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    contributions: list[collaboration_pb2.Contribution] = field(default_factory=list)
    state: collaboration_pb2.CollaborationState.ValueType = collaboration_pb2.COLLABORATION_STATE_INITIALIZING
    failure: task_pb2.TaskFailure | None = None

    def __post_init__(self) -> None:
        check(self.spec)
        for spec in self.spec.tasks:
            message = task_pb2.Task(collaboration_id=self.id, spec=spec, state=task_pb2.TASK_STATE_PENDING)
            self.rows[spec.task_id] = TaskRow(message)

    def is_over(self) -> bool:
        """Return whether it has ended."""
        return CollaborationInfo(self.info()).final

    def ready(self) -> list[TaskRow]:
        """Return the tasks that wait for nothing but an agent, most urgent first."""
        rows = [
            row
            for row in self.rows.values()
            if row.waiting and all(self.rows[name].done for name in row.message.spec.dependencies)
        ]
        return sorted(rows, key=lambda row: row.message.spec.priority or self.spec.priority or 3)

    def assignment(self, row: TaskRow, agent: str, locks: tuple[HeldLock, ...]) -> Assignment:
        """Begin a new attempt of a task at an agent."""
        spec = row.message.spec
        attempt = AttemptRef(self.id, row.id, FencingToken(EPOCH, len(row.message.attempts) + 1))
        row.attempt, row.agent = attempt, agent
        row.message.state = task_pb2.TASK_STATE_ASSIGNED
        now = row.message.attempts.add(agent_id=agent, instance_id="0")
        now.token.epoch, now.token.number = attempt.token.epoch, attempt.token.number
        now.assign_time.GetCurrentTime()
        if agent not in self.members:
            self.members.append(agent)
        self.state = collaboration_pb2.COLLABORATION_STATE_ACTIVE
        deadlines = [when for when in (moment(spec.deadline), moment(self.spec.deadline)) if when]
        return Assignment(
            attempt=attempt,
            task_name=spec.task_name,
            description=spec.description,
            task_type=spec.task_type,
            required_skills=tuple(spec.required_skills),
            priority=priority_from_proto(spec.priority or self.spec.priority),
            payload=payload_from_proto(spec.payload),
            inputs={name: payload_from_proto(self.rows[name].message.result) for name in spec.dependencies},
            locks=locks,
            shared_context=payload_from_proto(self.spec.shared_context),
            collaboration_name=self.spec.name,
            coordinator_agent=self.coordinator,
            members=tuple(self.members),
            deadline=min(deadlines, default=None),
            requester="operator/test",
            savepoint=row.savepoint,
        )

    def succeed(self, row: TaskRow, result: Payload) -> None:
        """Commit a result."""
        row.message.state = task_pb2.TASK_STATE_SUCCEEDED
        row.message.result.CopyFrom(payload_to_proto(result))
        newest = row.message.attempts[-1]
        contribution = collaboration_pb2.Contribution(
            task_id=row.id, agent_id=row.agent, attempt_number=newest.token.number
        )
        contribution.start_time.CopyFrom(newest.assign_time)
        contribution.end_time.FromDatetime(datetime.now(UTC))
        self.contributions.append(contribution)
        if all(other.done for other in self.rows.values()):
            self.state = collaboration_pb2.COLLABORATION_STATE_COMPLETED

    def fail(self, row: TaskRow, failure: task_pb2.TaskFailure) -> None:
        """Give a task up, and with it the collaboration."""
        row.message.state = task_pb2.TASK_STATE_FAILED
        row.message.failure.CopyFrom(failure)
        self.end(collaboration_pb2.COLLABORATION_STATE_FAILED, failure)

    def end(
        self, state: collaboration_pb2.CollaborationState.ValueType, failure: task_pb2.TaskFailure
    ) -> None:
        """End it without a result; what has not ended is cancelled."""
        self.state, self.failure = state, failure
        final = (task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED)
        for row in self.rows.values():
            if row.message.state not in final:
                row.message.state = task_pb2.TASK_STATE_CANCELLED

    def info(self) -> collaboration_pb2.Collaboration:
        """Return it as the scheduler would."""
        message = collaboration_pb2.Collaboration(
            collaboration_id=self.id,
            name=self.spec.name,
            collaboration_type=self.spec.collaboration_type,
            requester="operator/test",
            state=self.state,
            coordinator_agent=self.coordinator,
            members=self.members,
            task_count=len(self.rows),
            task_succeeded_count=sum(1 for row in self.rows.values() if row.done),
            tasks=[row.message for row in self.rows.values()],
            failure=self.failure,
        )
        if self.state == collaboration_pb2.COLLABORATION_STATE_COMPLETED:
            needed = {name for row in self.rows.values() for name in row.message.spec.dependencies}
            for name in sorted(set(self.rows) - needed):
                message.result.outputs[name].CopyFrom(self.rows[name].message.result)
            message.result.contributions.extend(self.contributions)
        return message


def check(spec: collaboration_pb2.CollaborationSpec) -> None:
    """Raise InvalidRequestError for what the scheduler would refuse in the shape of a DAG."""
    bad: list[Violation] = []
    tasks: dict[str, tuple[str, ...]] = {}
    for index, task in enumerate(spec.tasks):
        path = f"collaboration.tasks[{index}]"
        if not task.task_id or task.task_id in tasks:
            bad.append(Violation(f"{path}.task_id", f"{task.task_id!r} is empty or used twice"))
        if not task.required_skills:
            bad.append(Violation(f"{path}.required_skills", "name at least one"))
        tasks[task.task_id] = tuple(task.dependencies)
    if not tasks:
        bad.append(Violation("collaboration.tasks", "name at least one"))
    for index, task in enumerate(spec.tasks):
        unknown = [name for name in task.dependencies if name not in tasks]
        if unknown:
            path = f"collaboration.tasks[{index}].dependencies"
            bad.append(Violation(path, f"{', '.join(unknown)} is no task of this collaboration"))
    if not bad and (cycle := find_cycle(tasks)):
        way = " -> ".join(cycle)
        raise InvalidRequestError(
            f"tasks depend on each other in a circle: {way}",
            reason="CYCLIC_DEPENDENCY",
            violations=[Violation("collaboration.tasks", way)],
            metadata={"cycle": way},
        )
    if bad:
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in bad)
        raise InvalidRequestError(message, violations=bad)


def find_cycle(tasks: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return a circle of dependencies, first task repeated at the end; empty when there is none."""
    finished: set[str] = set()
    for start in tasks:
        path: list[str] = []
        # (task, its dependencies that are not visited yet)
        stack = [(start, iter(tasks[start]))]
        while stack:
            name, rest = stack[-1]
            if not path or path[-1] != name:
                path.append(name)
            following = next((other for other in rest if other not in finished), None)
            if following is None:
                finished.add(name)
                path.pop()
                stack.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            else:
                stack.append((following, iter(tasks[following])))
    return []
