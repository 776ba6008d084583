"""The small things that every message is made of: times, enums, payloads, tokens, failures."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from muster.common.v1 import fencing_pb2, payload_pb2
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import task_pb2 as task_pb
from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import invalid
from services.common.core.fencing import FencingToken
from services.common.core.ids import CollaborationId, ResourceName, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.events import HeldLock
from services.scheduler.core.model import (
    AttemptRef,
    Failure,
    FailureKind,
    LockMode,
    Payload,
    PolicyWeights,
    ResourceClaim,
)

E = TypeVar("E", bound=IntEnum)

#: The payload of whoever gave none.
NOTHING = Payload()
#: An UPPER_SNAKE reason, and a message for people.
FAILURE_REASON_BYTES_MAX = 64
FAILURE_MESSAGE_BYTES_MAX = 4_096


def instant(timestamp: Timestamp) -> Instant:
    """Return a timestamp in milliseconds; what is finer is dropped."""
    return Instant(timestamp.seconds * 1_000 + timestamp.nanos // 1_000_000)


def put_time(timestamp: Timestamp, value: Instant | None) -> None:
    """Set a message's timestamp; None leaves it unset."""
    if value is not None:
        timestamp.seconds, milliseconds = divmod(value, 1_000)
        timestamp.nanos = milliseconds * 1_000_000


def duration_ms(duration: Duration) -> int:
    """Return a duration in milliseconds; what is finer is dropped."""
    return duration.seconds * 1_000 + duration.nanos // 1_000_000


def put_duration(duration: Duration, milliseconds: int) -> None:
    """Set a message's duration."""
    duration.seconds, rest = divmod(milliseconds, 1_000)
    duration.nanos = rest * 1_000_000


def enum_value(kind: type[E], number: int, default: E, path: str) -> E:
    """Return an enum's value, `default` for unspecified; raises INVALID_FIELD for a number without a name."""
    if number == 0:
        return default
    try:
        return kind(number)
    except ValueError:
        raise invalid(path, f"{number} is not a {kind.__name__}: use one that the proto names") from None


def payload(message: payload_pb2.Payload) -> Payload:
    """Return a payload."""
    return Payload(message.content_type, message.data)


def put_payload(message: payload_pb2.Payload, value: Payload) -> None:
    """Set a message's payload, also when it is empty."""
    message.SetInParent()
    if value.content_type:
        message.content_type = value.content_type
    if value.data:
        message.data = value.data


def token(message: fencing_pb2.FencingToken) -> FencingToken:
    """Return a fencing token."""
    return FencingToken(message.epoch, message.number)


def put_token(message: fencing_pb2.FencingToken, value: FencingToken) -> None:
    """Set a message's fencing token."""
    message.epoch, message.number = value


def attempt_ref(message: work_pb.AttemptRef) -> AttemptRef:
    """Return the name of an attempt."""
    number = message.token
    return AttemptRef(
        CollaborationId(message.collaboration_id),
        TaskId(message.task_id),
        FencingToken(number.epoch, number.number),
    )


def put_attempt_ref(message: work_pb.AttemptRef, ref: AttemptRef) -> None:
    """Set a message's attempt."""
    message.collaboration_id = ref.collaboration_id
    message.task_id = ref.task_id
    put_token(message.token, ref.token)


def held_lock(message: work_pb.HeldLock) -> HeldLock:
    """Return the name of a lock grant."""
    return HeldLock(ResourceName(message.resource), token(message.token))


def held_lock_message(lock: HeldLock) -> work_pb.HeldLock:
    """Return the message of a lock grant."""
    message = work_pb.HeldLock(resource=lock.resource)
    put_token(message.token, lock.token)
    return message


def claim(message: task_pb.ResourceClaim, path: str) -> ResourceClaim:
    """Return a resource claim; an unspecified mode is EXCLUSIVE."""
    mode = enum_value(LockMode, message.mode, LockMode.EXCLUSIVE, f"{path}.mode")
    return ResourceClaim(ResourceName(message.resource), mode)


def failure(message: task_pb.TaskFailure, path: str) -> Failure:
    """Return a failure; an unspecified kind is TRANSIENT. Raises INVALID_FIELD for what is too long."""
    for name, text, most in (
        ("reason", message.reason, FAILURE_REASON_BYTES_MAX),
        ("message", message.message, FAILURE_MESSAGE_BYTES_MAX),
    ):
        if (size := len(text.encode())) > most:
            raise invalid(f"{path}.{name}", f"has {size} bytes: shorten it to at most {most}")
    kind = enum_value(FailureKind, message.kind, FailureKind.TRANSIENT, f"{path}.kind")
    return Failure(kind, message.reason, message.message)


def put_weights(message: collaboration_pb.PolicyWeights, value: PolicyWeights) -> None:
    """Set a message's weights."""
    message.finish_time, message.quality, message.cost, message.fairness = value


def put_failure(message: task_pb.TaskFailure, value: Failure | None) -> None:
    """Set a message's failure; None leaves it unset."""
    if value is not None:
        message.kind = task_pb.FailureKind.ValueType(value.kind)
        message.reason = value.reason
        message.message = value.message
