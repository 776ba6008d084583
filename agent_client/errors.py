"""What can go wrong, as exceptions; one class for each family of reasons.

Every error of the plane is a `google.rpc.Status` whose ErrorInfo has the domain "muster" and one reason of
`muster.common.v1.ErrorReason`. Catch a family, or `MusterError` and look at `reason`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from agent_client.core.records import Fault

_DOMAIN = "muster"
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field, as a path such as `collaboration.tasks[2].deadline`, and what is wrong with it."""

    field: str
    description: str


class MusterError(Exception):
    """An error of the plane, or of the way to it.

    `reason` is an ErrorReason name such as "STALE_FENCING_TOKEN". `definite` says that the operation did
    not and will not happen; when False it may have. `retryable` says that the same call may succeed later,
    after `retry_after` seconds when that is not None. `violations` names bad fields; `metadata` holds what
    the reason's comment in errors.proto lists.
    """

    default_reason = "INTERNAL"
    default_definite = True
    default_retryable = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        definite: bool | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.definite = self.default_definite if definite is None else definite
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.violations = tuple(violations)
        self.metadata: Mapping[str, str] = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class InvalidRequestError(MusterError):
    """The request is not allowed as it is; `violations` names the fields."""

    default_reason = "INVALID_FIELD"


def bad_field(field: str, description: str) -> InvalidRequestError:
    """Return the error for one field that is not allowed as it is."""
    return InvalidRequestError(f"{field}: {description}", violations=[Violation(field, description)])


class PreconditionError(MusterError):
    """The state of things does not allow it."""

    default_reason = "WRONG_STATE"


class StaleTokenError(PreconditionError):
    """A newer fencing token was issued, so this holder's writes no longer count."""

    default_reason = "STALE_FENCING_TOKEN"


class FencedError(PreconditionError):
    """Another process runs as the same instance of this agent, and it is the newer one."""

    default_reason = "INCARNATION_FENCED"


class ResourceHeldError(MusterError):
    """Somebody else holds the lock; `holder` says who, `until` (RFC 3339) for how long at least."""

    default_reason = "RESOURCE_HELD"
    default_retryable = True

    @property
    def holder(self) -> str:
        """The agent that holds it."""
        return self.metadata.get("holder", "")

    @property
    def until(self) -> str:
        """When its lease ends unless renewed; empty when unknown."""
        return self.metadata.get("until", "")


class LockLostError(MusterError):
    """The lock ended before it was released; what was done under it may have been overtaken."""

    default_reason = "LOCK_LOST"
    default_retryable = True


class RequestReusedError(MusterError):
    """The request_id or message_id was used before with other content."""

    default_reason = "REQUEST_ID_REUSED"


class NotFoundError(MusterError):
    """There is no such thing."""

    default_reason = "COLLABORATION_NOT_FOUND"


class AccessError(MusterError):
    """This identity may not do this."""

    default_reason = "ACCESS_DENIED"


class LimitError(MusterError):
    """A quota or a bound is reached."""

    default_reason = "QUOTA_EXCEEDED"
    default_retryable = True


class UnavailableError(MusterError):
    """The plane, or the part that is needed, does not answer now."""

    default_reason = "PEER_SILENT"
    default_definite = False
    default_retryable = True


class HistoryGoneError(MusterError):
    """What was asked for is no longer kept."""

    default_reason = "HISTORY_GONE"


class InternalError(MusterError):
    """A defect of a service; its log has the story."""

    default_definite = False


class CallTimeoutError(MusterError):
    """No answer came in time; whether it happened is unknown."""

    default_reason = "CALL_TIMED_OUT"
    default_definite = False
    default_retryable = True


class ContextError(MusterError):
    """This process does not know where the plane is, or has no certificate for it."""

    default_reason = "NO_CONTEXT"


class AgentLeftError(UnavailableError):
    """The agent left the plane while something was still under way; it may or may not have happened."""

    default_reason = "AGENT_LEFT"
    default_retryable = False

    def __init__(self) -> None:
        super().__init__("the agent has left the plane")


class CollaborationFailedError(MusterError):
    """A collaboration ended without a result; `reason` and `message` are those of its failure."""

    default_reason = "COLLABORATION_FAILED"


class PermanentFailure(Exception):
    """Raise it in a handler when trying again can not help. `reason` is a short UPPER_SNAKE word."""

    def __init__(self, message: str, *, reason: str = "PERMANENT_FAILURE") -> None:
        super().__init__(message)
        self.reason = reason


class TransientFailure(Exception):
    """Raise it in a handler when another try may succeed. `reason` is a short UPPER_SNAKE word."""

    def __init__(self, message: str, *, reason: str = "TRANSIENT_FAILURE") -> None:
        super().__init__(message)
        self.reason = reason


class TaskCancelled(Exception):
    """The task was cancelled; `Task.check_cancelled` raises it in sync handlers."""


class CancelledBySuspend(TaskCancelled):
    """The attempt makes room for more urgent work; `Task.check_suspending` raises it in sync handlers."""


_BY_REASON: Mapping[str, type[MusterError]] = {
    "STALE_FENCING_TOKEN": StaleTokenError,
    "INCARNATION_FENCED": FencedError,
    "RESOURCE_HELD": ResourceHeldError,
    "LOCK_LOST": LockLostError,
}

_CODE_NAMES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

_BY_CODE: Mapping[int, type[MusterError]] = {
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION.value[0]: PreconditionError,
    grpc.StatusCode.ABORTED.value[0]: PreconditionError,
    grpc.StatusCode.ALREADY_EXISTS.value[0]: RequestReusedError,
    grpc.StatusCode.NOT_FOUND.value[0]: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: AccessError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: AccessError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: LimitError,
    grpc.StatusCode.UNAVAILABLE.value[0]: UnavailableError,
    grpc.StatusCode.OUT_OF_RANGE.value[0]: HistoryGoneError,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: CallTimeoutError,
    grpc.StatusCode.CANCELLED.value[0]: UnavailableError,
}


def from_status(status: status_pb2.Status) -> MusterError:
    """Return the exception for a status that came inside a frame or as a call's end."""
    family = _BY_CODE.get(status.code, InternalError)
    reason, metadata = "", {}
    retry_after: float | None = None
    violations: list[Violation] = []
    for detail in status.details:
        match _unpack(detail):
            case error_details_pb2.ErrorInfo() as info if info.domain == _DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
            case error_details_pb2.BadRequest() as bad_request:
                violations += [Violation(bad.field, bad.description) for bad in bad_request.field_violations]
            case error_details_pb2.RetryInfo() as retry:
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    retryable = _flag(metadata, "retryable")
    if not reason:
        # gRPC itself speaks, not a service: only an absent or slow peer is worth another try.
        reason = _CODE_NAMES.get(status.code, "UNKNOWN")
        retryable = family in (UnavailableError, CallTimeoutError)
    return _BY_REASON.get(reason, family)(
        status.message or "the other side gave no message",
        reason=reason,
        definite=_flag(metadata, "definite"),
        retryable=retryable,
        retry_after=retry_after,
        violations=violations,
        metadata=metadata,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> MusterError:
    """Return the exception for a failed call; `error` stays its cause for the log."""
    # The stubs take the metadata for one pair; it is a sequence of pairs.
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                # Not a Muster service on the other end; what gRPC itself says still holds.
                break
    code = int(error.code().value[0])
    return from_status(status_pb2.Status(code=code, message=error.details() or ""))


def to_fault(error: MusterError) -> Fault:
    """Return what the cores need to know of `error`."""
    return Fault(
        reason=error.reason,
        message=error.message,
        definite=error.definite,
        retryable=error.retryable,
        retry_after_ms=None if error.retry_after is None else int(error.retry_after * 1000),
        coordinator=error.metadata.get("coordinator", ""),
    )


def _unpack(detail: any_pb2.Any) -> Message | None:
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
        if detail.Is(kind.DESCRIPTOR):
            try:
                message: Message = kind.FromString(detail.value)
            except DecodeError:
                # A detail that can not be read says nothing; the code and the message still count.
                return None
            return message
    return None


def _flag(metadata: Mapping[str, str], key: str) -> bool | None:
    value = metadata.get(key)
    return None if value is None else value == "true"
