"""What the scheduler says of collaborations and tasks, with decoded values; `message` has every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from muster.scheduler.v1 import collaboration_pb2, task_pb2

from agent_client.errors import CollaborationFailedError
from agent_client.payload import decode
from agent_client.plain import to_plain
from agent_client.wire import moment, payload_from_proto

# States in which nothing changes any more.
FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Contribution:
    """One completed task and who did it."""

    task_id: str
    agent_id: str
    attempt_number: int
    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a collaboration brought: results of its last tasks by task_id, and who did what."""

    collaboration_id: str
    outputs: Mapping[str, Any]
    contributions: tuple[Contribution, ...]

    def __getitem__(self, task_id: str) -> Any:
        return self.outputs[task_id]


@dataclass(frozen=True, slots=True)
class Progress:
    """A live report of one attempt."""

    collaboration_id: str
    task_id: str
    attempt_number: int
    fraction: float
    stage: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes up to `to_generation` are no longer kept; a snapshot follows as changes."""

    collaboration_id: str
    from_generation: int
    to_generation: int


@dataclass(frozen=True, slots=True)
class DeadlineWarning:
    """A deadline is predicted to be missed, or, with a `recover_time`, to be met after all.

    `task_id` is whose deadline it is, empty for the collaboration's own; `cause_task_id` is the task that is
    late. `predicted_end` is as it was when the warning was made.
    """

    collaboration_id: str
    task_id: str
    deadline: datetime | None
    predicted_end: datetime | None
    cause_task_id: str
    recover_time: datetime | None

    @property
    def stands(self) -> bool:
        """Whether it is a warning, and not its end."""
        return self.recover_time is None

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain values; times in RFC 3339, None for none."""
        times = {
            "deadline": self.deadline,
            "predicted_end": self.predicted_end,
            "recovered": self.recover_time,
        }
        plain = {name: None if time is None else time.isoformat() for name, time in times.items()}
        return {"task_id": self.task_id, "cause_task_id": self.cause_task_id, **plain}


class TaskInfo:
    """A task with its course."""

    def __init__(self, message: task_pb2.Task) -> None:
        self.message = message

    def __repr__(self) -> str:
        return f"TaskInfo({self.id}, {self.state})"

    @property
    def id(self) -> str:
        """Its id, unique in its collaboration."""
        return self.message.spec.task_id

    @property
    def name(self) -> str:
        """Its name for people, or its id."""
        return self.message.spec.task_name or self.id

    @property
    def collaboration_id(self) -> str:
        """The collaboration that it belongs to."""
        return self.message.collaboration_id

    @property
    def state(self) -> str:
        """PENDING, READY, ASSIGNED, RUNNING, SUSPENDED, SUCCEEDED, FAILED or CANCELLED."""
        return task_pb2.TaskState.Name(self.message.state).removeprefix("TASK_STATE_")

    @property
    def agent(self) -> str:
        """The agent of its newest attempt; empty before the first."""
        return self.message.attempts[-1].agent_id if self.message.attempts else ""

    @property
    def attempt_number(self) -> int:
        """The newest attempt's number; 0 before the first."""
        return self.message.attempts[-1].token.number if self.message.attempts else 0

    @property
    def progress(self) -> float:
        """0 to 1, of the current attempt."""
        return self.message.progress

    @property
    def stage(self) -> str:
        """What the agent says it is doing."""
        return self.message.stage

    @property
    def waiting_for(self) -> str:
        """Why it waits, in words; empty when it does not."""
        return self.message.waiting_for

    @property
    def result(self) -> Any:
        """Its decoded result; None unless SUCCEEDED."""
        return decode(payload_from_proto(self.message.result)) if self.message.HasField("result") else None

    @property
    def failure(self) -> str:
        """Why it FAILED or was CANCELLED: "REASON: message"; else empty."""
        return _failure(self.message.failure) if self.message.HasField("failure") else ""

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain values."""
        plain: dict[str, Any] = to_plain(self.message)
        return plain


class CollaborationInfo:
    """A collaboration; `tasks` is empty where the scheduler leaves them out (lists and changes)."""

    def __init__(self, message: collaboration_pb2.Collaboration) -> None:
        self.message = message

    def __repr__(self) -> str:
        return f"CollaborationInfo({self.id}, {self.state})"

    @property
    def id(self) -> str:
        """Its id."""
        return self.message.collaboration_id

    @property
    def name(self) -> str:
        """Its name for people, or its id."""
        return self.message.name or self.id

    @property
    def state(self) -> str:
        """INITIALIZING, ACTIVE, SUSPENDED, CONFLICTED, COMPLETED, FAILED or CANCELLED."""
        name = collaboration_pb2.CollaborationState.Name(self.message.state)
        return name.removeprefix("COLLABORATION_STATE_")

    @property
    def final(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in FINAL_STATES

    @property
    def generation(self) -> int:
        """Grows by one with every durable change."""
        return self.message.generation

    @property
    def submit_time(self) -> datetime | None:
        """When it was accepted, UTC."""
        return moment(self.message.submit_time)

    @property
    def end_time(self) -> datetime | None:
        """When it ended, UTC; None while it runs."""
        return moment(self.message.end_time)

    @property
    def coordinator(self) -> str:
        """The agent that coordinates locally; empty until one is chosen."""
        return self.message.coordinator_agent

    @property
    def members(self) -> tuple[str, ...]:
        """Agents that hold or held an attempt."""
        return tuple(self.message.members)

    @property
    def task_count(self) -> int:
        """How many tasks it has."""
        return self.message.task_count

    @property
    def task_succeeded_count(self) -> int:
        """How many of them are done."""
        return self.message.task_succeeded_count

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """Its tasks."""
        return tuple(TaskInfo(task) for task in self.message.tasks)

    @property
    def warnings(self) -> tuple[DeadlineWarning, ...]:
        """The deadlines, its own and its tasks', that are predicted to be missed."""
        return tuple(_warning(self.id, warning) for warning in self.message.deadline_warnings)

    @property
    def failure(self) -> str:
        """Why it FAILED or was CANCELLED: "REASON: message"; else empty."""
        return _failure(self.message.failure) if self.message.HasField("failure") else ""

    def result(self) -> Result:
        """Return the result. Raises CollaborationFailedError when it has none."""
        message = self.message
        if self.state != "COMPLETED":
            failure = message.failure
            raise CollaborationFailedError(
                f"collaboration {self.id} is {self.state}: {failure.message or 'no failure is recorded'}",
                reason=failure.reason or self.state,
            )
        return Result(
            collaboration_id=self.id,
            outputs={
                task_id: decode(payload_from_proto(payload))
                for task_id, payload in message.result.outputs.items()
            },
            contributions=tuple(
                Contribution(
                    task_id=row.task_id,
                    agent_id=row.agent_id,
                    attempt_number=row.attempt_number,
                    start_time=moment(row.start_time),
                    end_time=moment(row.end_time),
                )
                for row in message.result.contributions
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain values."""
        plain: dict[str, Any] = to_plain(self.message)
        return plain


Change = CollaborationInfo | TaskInfo | Progress | Gap | DeadlineWarning


def change_of(event: collaboration_pb2.CollaborationEvent) -> Change | None:
    """Return an event's change; None for a kind that this client does not know."""
    match event.WhichOneof("change"):
        case "collaboration":
            return CollaborationInfo(event.collaboration)
        case "task":
            return TaskInfo(event.task)
        case "progress":
            report = event.progress
            return Progress(
                event.collaboration_id, report.task_id, report.attempt_number, report.progress, report.stage
            )
        case "gap":
            return Gap(event.collaboration_id, event.gap.from_generation, event.gap.to_generation)
        case "deadline_warning":
            return _warning(event.collaboration_id, event.deadline_warning)
        case _:
            return None


def _warning(collaboration_id: str, message: collaboration_pb2.DeadlineWarning) -> DeadlineWarning:
    return DeadlineWarning(
        collaboration_id,
        message.task_id,
        moment(message.deadline),
        moment(message.predicted_end_time),
        message.cause_task_id,
        moment(message.recover_time),
    )


def _failure(message: task_pb2.TaskFailure) -> str:
    return f"{message.reason}: {message.message}" if message.message else message.reason
